import dataclasses
import math

import pytest
import torch

from tests.train_helpers import architecture, some_ids
from train.config import OptimizerConfig
from train.loss import token_loss
from train.model import ArgonneModel
from train.optim import build_optimizer, create_state, learning_rate, set_learning_rate
from train.pipeline import _gradient
from train.strategy import clip_gradients, evaluating, squared_norm

CONFIG = OptimizerConfig(learning_rate=3.0, min_learning_rate=1.0, warmup_steps=10)
CPU = torch.device("cpu")


def small_model(**changes):
    model = ArgonneModel(architecture(attention_bias=True, **changes))
    model.initialize(seed=0)
    return model


def weights_after(config, steps=3):
    model = small_model()
    optimizer = build_optimizer(config, model)
    for step in range(steps):
        token_loss(model(some_ids(seed=step)), some_ids(seed=step + 1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.detach().clone() for name, value in model.named_parameters()}


# the learning rate


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 1.0),  # the first step is made with the minimum
        (1, 1.2),
        (5, 2.0),
        (10, 3.0),  # the peak
        (35, 2.0 + math.sqrt(0.5)),  # an eighth of a turn
        (60, 2.0),
        (110, 1.0),  # the end of the schedule
        (10_000, 1.0),
    ],
)
def test_the_learning_rate_of_each_step(step, rate):
    assert learning_rate(CONFIG, 110, step) == pytest.approx(rate)


@pytest.mark.parametrize(("step", "rate"), [(0, 3e-5), (1000, 1.65e-4), (2000, 3e-4), (160_000, 3e-5)])
def test_the_learning_rate_of_argonne_2(step, rate):
    assert learning_rate(OptimizerConfig(), 160_000, step) == pytest.approx(rate)


@pytest.mark.parametrize("total_steps", [1, 5, 10])
def test_a_run_shorter_than_its_warmup_warms_up(total_steps):
    assert [learning_rate(CONFIG, total_steps, step) for step in (0, 5)] == [1.0, 2.0]


def test_without_warmup_the_first_step_has_the_peak():
    assert learning_rate(dataclasses.replace(CONFIG, warmup_steps=0), 100, 0) == 3.0


def test_setting_the_rate_sets_it_for_every_group():
    optimizer = build_optimizer(CONFIG, small_model())
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]


# AdamW


def test_weight_decay_acts_on_matrices_only():
    model = small_model()
    optimizer = build_optimizer(OptimizerConfig(learning_rate=0.5, weight_decay=0.1), model)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = before[name] * (0.95 if parameter.ndim == 2 else 1.0)
        torch.testing.assert_close(parameter.detach(), expected)


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
    [{"learning_rate": 1e-2}, {"weight_decay": 0.5}, {"beta1": 0.5}, {"beta2": 0.5}, {"epsilon": 1e-3}],
    ids=str,
)
def test_every_option_of_the_optimizer_changes_the_weights(changes):
    default, changed = weights_after(OptimizerConfig()), weights_after(OptimizerConfig(**changes))
    assert any(not torch.equal(default[name], changed[name]) for name in default)


@pytest.mark.parametrize("tied", [True, False])
def test_creating_the_state_moves_no_weight_and_leaves_no_gradient(tied):
    model = small_model(tie_word_embeddings=tied)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_optimizer(OptimizerConfig(weight_decay=0.5), model)
    create_state(optimizer)
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None
        assert optimizer.state[parameter].keys() == {"step", "exp_avg", "exp_avg_sq"}


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
