import math

import pytest
import torch

from tests.train_helpers import architecture, some_ids
from train.config import OptimizerConfig
from train.loss import token_loss
from train.model import ArgonneModel, Part
from train.optim import build_optimizer, create_state, group_of, set_learning_rates
from train.pipeline import _gradient
from train.strategy import clip_gradients, evaluating, squared_norm

CONFIG = OptimizerConfig()
CPU = torch.device("cpu")


def small_model(**changes):
    model = ArgonneModel(architecture(attention_bias=True, **changes))
    model.initialize(seed=0)
    return model


def weights_after(config, steps=3, prepare=None):
    model = small_model()
    optimizer = build_optimizer(config, model)
    if prepare is not None:
        prepare(optimizer)
        set_learning_rates(
            optimizer, dict.fromkeys(("lr_matrices", "lr_embeddings", "lr_vectors"), config.learning_rate)
        )
    for step in range(steps):
        token_loss(model(some_ids(seed=step)), some_ids(seed=step + 1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.detach().clone() for name, value in model.named_parameters()}


# groups


def test_setting_the_rates_sets_them_for_every_group():
    optimizer = build_optimizer(CONFIG, small_model())
    set_learning_rates(optimizer, {"lr": 9.0, "lr_matrices": 0.5, "lr_embeddings": 0.25, "lr_vectors": 1.0})
    assert {group["name"]: group["lr"] for group in optimizer.param_groups} == {
        "matrices": 0.5,
        "embeddings": 0.25,
        "vectors": 1.0,
    }


def grouped(model, **changes):
    """The names of each group's parameters."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = build_optimizer(OptimizerConfig(**changes), model).param_groups
    return {group["name"]: {names[parameter] for parameter in group["params"]} for group in groups}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_parameter_is_in_the_group_of_its_name_in_every_stage(optimizer):
    config = architecture(attention_bias=True, tie_word_embeddings=False)
    whole = grouped(ArgonneModel(config), name=optimizer)
    assert whole["embeddings"] == {"embed_tokens.weight", "lm_head.weight"}
    assert {name.split(".", 2)[2] for name in whole["matrices"]} == {
        *(f"attn.{letter}_proj.weight" for letter in "qkvo"),
        *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    }
    assert {"norm.weight", "blocks.1.input_norm.weight", "blocks.0.attn.q_proj.bias"} < whole["vectors"]
    parts = [Part(range(1), is_first=True, is_last=False), Part(range(1, 2), is_first=False, is_last=True)]
    stages = [grouped(ArgonneModel(config, part), name=optimizer) for part in parts]
    assert {name: stages[0][name] | stages[1][name] for name in whole} == whole


# AdamW


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("decay_embeddings", [True, False])
def test_weight_decay_acts_on_matrices_only_and_on_embeddings_by_choice(name, decay_embeddings):
    model = small_model(tie_word_embeddings=False)
    config = OptimizerConfig(name, learning_rate=0.5, weight_decay=0.1, decay_embeddings=decay_embeddings)
    optimizer = build_optimizer(config, model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter_name, parameter in model.named_parameters():
        decays = parameter.ndim == 2 and (parameter_name.startswith("blocks") or decay_embeddings)
        torch.testing.assert_close(parameter.detach(), before[parameter_name] * (0.95 if decays else 1.0))


def test_every_parameter_is_in_one_group():
    model = small_model()
    grouped = [parameter for group in build_optimizer(CONFIG, model).param_groups for parameter in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))


def test_a_step_is_that_of_the_formula():
    config = OptimizerConfig(learning_rate=0.1, beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.2)
    weight = torch.nn.Linear(1, 1, bias=False)
    weight.weight.data.fill_(2.0)
    optimizer = build_optimizer(config, weight)
    expected, mean, square = 2.0, 0.0, 0.0
    for step, gradient in enumerate((0.5, -0.25), start=1):
        weight.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        mean, square = 0.8 * mean + 0.2 * gradient, 0.9 * square + 0.1 * gradient**2
        moved = (mean / (1 - 0.8**step)) / (math.sqrt(square / (1 - 0.9**step)) + 1e-3)
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * moved
    assert weight.weight.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "muon"},
        {"learning_rate": 1e-2},
        {"weight_decay": 0.5},
        {"decay_embeddings": False},
        {"beta1": 0.5},
        {"beta2": 0.5},
        {"epsilon": 1e-3},
    ],
    ids=str,
)
def test_every_option_of_the_optimizer_changes_the_weights(changes):
    default, changed = weights_after(OptimizerConfig()), weights_after(OptimizerConfig(**changes))
    assert any(not torch.equal(default[name], changed[name]) for name in default)


@pytest.mark.parametrize("optimizer_name", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_creating_the_state_moves_no_weight_and_leaves_no_gradient(tied, optimizer_name):
    model = small_model(tie_word_embeddings=tied)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_optimizer(OptimizerConfig(optimizer_name, weight_decay=0.5), model)
    create_state(optimizer)
    for (name, parameter), value in zip(model.named_parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None
        by_muon = optimizer_name == "muon" and group_of(name, parameter.ndim) == "matrices"
        assert optimizer.state[parameter].keys() == ({"momentum"} if by_muon else {"step", "exp_avg", "exp_avg_sq"})


# gradients


def with_gradients(*values):
    parameters = [torch.nn.Parameter(torch.zeros(len(value))) for value in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor(value)
    return parameters


def test_the_squared_norm_is_over_all_parameters():
    assert squared_norm(with_gradients([3.0, 0.0], [4.0]), CPU).item() == 25.0


def test_the_squared_norm_without_gradients_is_zero():
    assert squared_norm([torch.nn.Parameter(torch.zeros(2))], CPU).item() == 0.0


@pytest.mark.parametrize(("max_norm", "scaled"), [(1.0, [0.6, 0.8]), (5.0, [3.0, 4.0]), (100.0, [3.0, 4.0])])
def test_gradients_are_scaled_down_to_the_norm_and_never_up(max_norm, scaled):
    parameters = with_gradients([3.0], [4.0])
    clip_gradients(parameters, torch.tensor(5.0), max_norm)
    assert [parameter.grad.item() for parameter in parameters] == pytest.approx(scaled, rel=1e-5)


def test_a_parameter_of_a_stage_without_a_gradient_is_our_bug():
    with pytest.raises(AssertionError, match=r"^every parameter of a stage is used in its forward pass"):
        _gradient(torch.nn.Parameter(torch.zeros(1)))


def fail_while_evaluating(model):
    with evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        raise ZeroDivisionError


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode_also_after_an_error(training):
    model = small_model().train(training)
    with pytest.raises(ZeroDivisionError):
        fail_while_evaluating(model)
    assert model.training is training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_made_before_the_first_step_changes_no_bit_of_what_is_learned(name):
    config = OptimizerConfig(name=name)
    lazily = weights_after(config)
    early = weights_after(config, prepare=create_state)
    assert all(torch.equal(early[name], value) for name, value in lazily.items())


def test_state_that_is_there_stays():
    model = small_model()
    optimizer = build_optimizer(CONFIG, model)
    create_state(optimizer)
    first = next(iter(optimizer.state.values()))
    first["exp_avg"].fill_(3.0)
    create_state(optimizer)
    assert (first["exp_avg"] == 3.0).all()
