import dataclasses
import math

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

from shared.errors import ConfigError
from tests.train_helpers import architecture, lively_model, recipe, some_ids, write_tokens
from train.architecture import ArgonneConfig
from train.attention import visible
from train.config import load_recipe
from train.data import ChunkReader
from train.layers import rotary_table, rotate
from train.layout import num_parameters
from train.loss import IGNORED, token_loss
from train.model import ArgonneModel, Part, whole
from train.sample import Sampling, generate
from train.views import open_view

RECIPE_NAMES = ["tiny", "125m", "1b", "argonne-2.0"]
CPU = torch.device("cpu")


# against a reference

RENAMED = {
    "blocks.": "model.layers.",
    ".attn.": ".self_attn.",
    ".input_norm.": ".input_layernorm.",
    ".post_norm.": ".post_attention_layernorm.",
}


def llama_name(name):
    if not name.startswith(("blocks.", "lm_head.")):
        return f"model.{name}"
    for ours, theirs in RENAMED.items():
        name = name.replace(ours, theirs)
    return name


def llama(config):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.feed_forward,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_word_embeddings,
            attention_bias=config.attention_bias,
            mlp_bias=config.mlp_bias,
        )
    ).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 4},  # every head its own
        {"head_size": 6},  # narrower together than the model
        {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-2},
        {"use_flash_attention": False},
    ],
    ids=str,
)
def test_logits_are_those_of_transformers_llama_with_the_same_weights(tied, theta, changes):
    model = lively_model(architecture(rope_theta=theta, tie_word_embeddings=tied, **changes))
    reference = llama(model.config)
    weights = {llama_name(name): value for name, value in model.state_dict().items()}
    assert weights.keys() == reference.state_dict().keys()
    reference.load_state_dict(weights)
    ids = some_ids(length=40)
    with torch.no_grad():
        ours, theirs = model(ids), reference(ids).logits
    assert ours.std() > 1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_model_from_the_meta_device_has_the_logits_of_llama():
    with torch.device("meta"):
        model = ArgonneModel(architecture())
    model.to_empty(device="cpu")
    model.initialize(seed=5)
    reference = llama(model.config)
    reference.load_state_dict({llama_name(name): value for name, value in model.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(some_ids()), reference(some_ids()).logits, atol=1e-4, rtol=0)


# names and initial weights


def expected_names(biased_attention=False, biased_mlp=False):
    names = {"embed_tokens.weight", "norm.weight", "lm_head.weight"}
    for block in ("blocks.0", "blocks.1"):
        names |= {f"{block}.input_norm.weight", f"{block}.post_norm.weight"}
        for kind in ("weight", "bias") if biased_attention else ("weight",):
            names |= {f"{block}.attn.{part}_proj.{kind}" for part in "qkvo"}
        for kind in ("weight", "bias") if biased_mlp else ("weight",):
            names |= {f"{block}.mlp.{part}_proj.{kind}" for part in ("gate", "up", "down")}
    return names


@pytest.mark.parametrize("tied", [True, False])
def test_parameter_names_are_those_of_argonne_2(tied):
    assert set(ArgonneModel(architecture(tie_word_embeddings=tied)).state_dict()) == expected_names()


@pytest.mark.parametrize(("attention", "mlp"), [(True, False), (False, True), (True, True)])
def test_biases_add_their_parameters(attention, mlp):
    names = set(ArgonneModel(architecture(attention_bias=attention, mlp_bias=mlp)).state_dict())
    assert names == expected_names(attention, mlp)


def test_a_tied_head_is_one_tensor_also_through_the_meta_device():
    with torch.device("meta"):
        model = ArgonneModel(architecture(tie_word_embeddings=True))
    model.to_empty(device="cpu")
    model.initialize(seed=0)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_an_untied_head_starts_with_weights_of_its_own():
    model = ArgonneModel(architecture(tie_word_embeddings=False))
    model.initialize(seed=0)
    assert not torch.equal(model.lm_head.weight, model.embed_tokens.weight)


@pytest.mark.parametrize("tied", [True, False])
def test_the_parameters_are_as_many_as_the_layout_reckons(tied):
    config = architecture(tie_word_embeddings=tied)
    assert sum(parameter.numel() for parameter in ArgonneModel(config).parameters()) == num_parameters(config)


def initial(config, part=None, seed=3):
    model = ArgonneModel(config, part)
    model.initialize(seed)
    return dict(model.named_parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "parts",
    [
        [Part(range(3))],
        [Part(range(1), is_last=False), Part(range(1, 3), is_first=False)],
        [Part(range(1), is_last=False), Part(range(1, 2), False, False), Part(range(2, 3), is_first=False)],
    ],
    ids=len,
)
def test_the_parts_of_a_model_start_with_the_weights_of_the_whole(tied, parts):
    config = architecture(num_hidden_layers=3, tie_word_embeddings=tied)
    everything, found = initial(config), set()
    for part in parts:
        for name, parameter in initial(config, part).items():
            assert torch.equal(parameter, everything[name]), name
            found.add(name)
    assert found == everything.keys()


def test_the_parts_of_a_model_one_after_another_are_the_whole():
    config = architecture(num_hidden_layers=3, tie_word_embeddings=False)
    model = lively_model(config)
    hidden = some_ids()
    for part in [Part(range(1), is_last=False), Part(range(1, 2), False, False), Part(range(2, 3), is_first=False)]:
        stage = ArgonneModel(config, part).eval()
        stage.load_state_dict({name: model.state_dict()[name] for name in stage.state_dict()})
        hidden = stage(hidden)
    assert torch.equal(hidden, model(some_ids()))


def test_another_seed_gives_other_matrices_and_no_two_matrices_are_alike():
    one, two = initial(architecture(), seed=1), initial(architecture(), seed=2)
    matrices = [name for name, parameter in one.items() if parameter.ndim == 2]
    assert all(not torch.equal(one[name], two[name]) for name in matrices)
    assert len({one[name].flatten()[0].item() for name in matrices}) == len(matrices)


@pytest.mark.parametrize(
    ("name", "value"), [("blocks.0.input_norm.weight", 1), ("norm.weight", 1), ("blocks.1.attn.q_proj.bias", 0)]
)
def test_norms_start_as_ones_and_biases_as_zeros(name, value):
    assert (initial(architecture(attention_bias=True))[name] == value).all()


@pytest.mark.parametrize("name", ["o_proj", "down_proj"])
def test_projections_into_the_residual_stream_start_smaller(name):
    config = architecture(hidden_size=128, intermediate_size=128, num_hidden_layers=8)
    weights = initial(config)
    small = [value.std().item() for key, value in weights.items() if name in key]
    base = weights["blocks.0.mlp.up_proj.weight"].std().item()
    assert small == pytest.approx([base / math.sqrt(2 * 8)] * 8, rel=0.1)


# what it learns


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_the_first_loss_is_that_of_guessing_at_every_shipped_width(name):
    shape = load_recipe(name).model
    layers = 2 if shape.tie_word_embeddings else 1  # a tied head without blocks before it foresees the last token
    config = dataclasses.replace(shape, num_hidden_layers=layers, vocab_size=512)
    model = ArgonneModel(config)
    model.initialize(seed=0)
    ids = some_ids(1, 65, 512)
    with torch.no_grad():
        loss = token_loss(model(ids[:, :-1]), ids[:, 1:]) / 64
    assert float(loss) == pytest.approx(math.log(512), rel=0.05)


def test_a_copy_task_is_learned_and_continued_token_for_token(tmp_path):
    """The reader makes the one label shift there is: a second one would be continued with every other token."""
    half, num_rows = 8, 1500
    halves = some_ids(num_rows, half, 16, seed=1)
    rows = torch.cat((halves, halves), dim=1)
    config = recipe(
        model__vocab_size=16,
        model__num_hidden_layers=1,
        model__hidden_size=64,
        model__max_position_embeddings=32,
        data__sequence_length=2 * half,
        data__global_batch=16,
        data__validation_chunks=0,
        data__order="natural",
    )
    index = write_tokens(tmp_path, [rows.flatten().tolist()], vocab_size=16)
    reader = ChunkReader(open_view(tmp_path, index, config), config, 0, 1, CPU)
    model = ArgonneModel(config.model)
    model.initialize(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for position in range(0, 100 * 16, 16):
        batch, _ = reader.fetch(position % 1488)
        targets = batch.targets_BT.clone()
        targets[:, : half - 1] = targets[:, -1:] = IGNORED  # the first half and the next row cannot be foreseen
        loss = token_loss(model(batch.inputs_BT), targets) / (16 * half)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    reader.close()
    assert loss.item() < 0.1 * math.log(16)
    prompts = some_ids(4, half, 16, seed=2)
    copied = generate(model, torch.cat((prompts, prompts[:, :1]), 1), Sampling(max_new_tokens=7, temperature=0))
    assert torch.equal(copied[:, half:], prompts)


def test_the_loss_is_the_sum_over_real_targets_in_fp32():
    logits = torch.randn(2, 3, 5, dtype=torch.bfloat16)
    targets = torch.tensor([[1, IGNORED, 4], [IGNORED, 0, IGNORED]])
    logs = logits.float().log_softmax(-1)
    loss = token_loss(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, -(logs[0, 0, 1] + logs[0, 2, 4] + logs[1, 1, 0]))


# attention


@pytest.mark.parametrize(
    "changes", [{}, {"use_flash_attention": False}, {"sliding_window": 3}, {"attention_bias": True}], ids=str
)
@pytest.mark.parametrize("changed", [1, 6, 11])
def test_a_later_token_never_changes_earlier_logits(changes, changed):
    model = lively_model(architecture(**changes))
    ids = some_ids()
    other = ids.clone()
    other[:, changed] = (other[:, changed] + 1) % 64
    before, after = model(ids), model(other)
    torch.testing.assert_close(before[:, :changed], after[:, :changed], atol=1e-5, rtol=0)
    assert (before[:, changed] - after[:, changed]).abs().max() > 1e-2


def test_a_token_outside_of_every_window_is_not_seen():
    model = lively_model(architecture(sliding_window=3, num_hidden_layers=2))
    ids, other = some_ids(), some_ids()
    other[:, 0] = (other[:, 0] + 1) % 64
    differs = (model(ids) - model(other)).abs().amax((0, 2)) > 1e-4
    assert differs.tolist() == [True] * 5 + [False] * 7  # each of two blocks looks two tokens back


@pytest.mark.parametrize(
    ("queries", "keys", "window", "expected"),
    [
        (3, 3, None, [[1, 0, 0], [1, 1, 0], [1, 1, 1]]),
        (3, 3, 1, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        (3, 3, 2, [[1, 0, 0], [1, 1, 0], [0, 1, 1]]),
        (1, 3, None, [[1, 1, 1]]),  # one new token behind two cached ones
        (1, 3, 2, [[0, 1, 1]]),
        (2, 3, None, [[1, 1, 0], [1, 1, 1]]),
    ],
)
def test_a_position_sees_itself_and_those_before_it(queries, keys, window, expected):
    assert visible(queries, keys, window, CPU).int().tolist() == expected


def test_the_rotary_table_is_fp32_also_in_a_bf16_model():
    model = lively_model(architecture()).bfloat16()
    tables = []
    model.blocks["0"].register_forward_pre_hook(lambda block, arguments: tables.append(arguments[1]))
    assert model(some_ids()).dtype == torch.bfloat16
    assert [table.dtype for table in tables[0]] == [torch.float32] * 2


def test_the_rotary_table_is_that_of_far_positions_in_double_precision():
    cosines, sines = rotary_table(torch.arange(4096), 64, 500_000.0)
    angles = torch.outer(
        torch.arange(4096.0, dtype=torch.float64), 500_000.0 ** -(torch.arange(0, 64, 2) / 64).double()
    )
    torch.testing.assert_close(cosines.double(), angles.cos().repeat(1, 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(sines.double(), angles.sin().repeat(1, 2), atol=1e-3, rtol=0)


def test_rotation_keeps_lengths_and_makes_products_depend_on_distance_alone():
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(first, second):
        turned = [
            rotate(vector, rotary_table(torch.tensor([place]), 8, 10_000.0))
            for vector, place in ((query, first), (key, second))
        ]
        assert float(turned[0].norm()) == pytest.approx(float(query.norm()), rel=1e-5)
        return float((turned[0] * turned[1]).sum())

    assert product(5, 2) == pytest.approx(product(45, 42), abs=1e-4)
    assert product(5, 2) != pytest.approx(product(5, 3), abs=1e-4)


# every field of the architecture does something


class Calls(TorchFunctionMode):
    """Names of the torch functions that were called inside."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


def shapes(config):
    return {name: parameter.shape for name, parameter in ArgonneModel(config).named_parameters()}


def logits(config):
    return lively_model(config)(some_ids())


def training_logits(config):
    torch.manual_seed(0)
    return lively_model(config).train()(some_ids())


def calls_fused_attention(config):
    with Calls() as calls:
        logits(config)
    return "scaled_dot_product_attention" in calls.names


def sampled(config):
    """What follows a few prompts, and an empty prompt."""
    model = lively_model(config)
    outcomes = []
    for prompt in (some_ids(8, 4), torch.zeros(2, 0, dtype=torch.long)):
        outcomes.append(generate(model, prompt, Sampling(max_new_tokens=30, temperature=100.0)).tolist())
    return outcomes


def longest(config):
    """New tokens that fit behind a prompt of 4."""
    return next(new - 1 for new in range(1, 99) if not fits(config, new))


def fits(config, new):
    try:
        generate(ArgonneModel(config), some_ids(1, 4), Sampling(max_new_tokens=new, temperature=0))
    except ConfigError:
        return False
    return True


ENDED = {"eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 3}
FIELDS = [
    ("vocab_size", 64, 128, shapes),
    ("hidden_size", 32, 64, shapes),
    ("num_hidden_layers", 2, 3, shapes),
    ("num_attention_heads", 4, 2, shapes),
    ("head_size", None, 6, shapes),
    ("num_key_value_heads", 2, 4, shapes),
    ("intermediate_size", 48, 64, shapes),
    ("max_position_embeddings", 8, 10, longest),
    ("attention_dropout", 0.0, 0.5, training_logits),
    ("hidden_dropout", 0.0, 0.5, training_logits),
    ("rms_norm_eps", 1e-6, 1e-1, logits),
    ("rope_theta", 10_000.0, 500_000.0, logits),
    ("sliding_window", None, 3, logits),
    ("use_flash_attention", True, False, calls_fused_attention),
    ("qk_norm", False, True, shapes),
    ("logit_softcap", None, 2.0, logits),
    ("tie_word_embeddings", True, False, shapes),
    ("attention_bias", False, True, shapes),
    ("mlp_bias", False, True, shapes),
    ("eos_token_id", 1, 20, sampled),
    ("bos_token_id", 2, 7, sampled),
    ("pad_token_id", 3, 50, sampled),
]


def differ(one, two):
    return not torch.equal(one, two) if isinstance(one, torch.Tensor) else one != two


@pytest.mark.parametrize(("field", "before", "after", "observe"), FIELDS, ids=[row[0] for row in FIELDS])
def test_every_field_of_the_architecture_changes_something_observable(field, before, after, observe):
    one, same, two = (observe(architecture(**{**ENDED, field: value})) for value in (before, before, after))
    assert not differ(one, same)
    assert differ(one, two)


def test_the_table_of_fields_is_complete():
    in_another_file = {"architecture"}  # tests/test_legacy.py
    assert {row[0] for row in FIELDS} | in_another_file == {field.name for field in dataclasses.fields(ArgonneConfig)}


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_fused_and_plain_attention_are_equal(window):
    fused, plain = (logits(architecture(use_flash_attention=flash, sliding_window=window)) for flash in (True, False))
    torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)


def test_a_window_as_long_as_the_text_is_none():
    torch.testing.assert_close(
        logits(architecture(sliding_window=12)), logits(architecture(sliding_window=None)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("field", ["attention_dropout", "hidden_dropout"])
@pytest.mark.parametrize("flash", [True, False])
def test_dropout_acts_in_training_mode_alone(field, flash):
    none, some = (architecture(use_flash_attention=flash, **{field: rate}) for rate in (0.0, 0.5))
    torch.testing.assert_close(logits(none), logits(some))
    assert differ(training_logits(none), training_logits(some))


def test_the_whole_is_all_layers():
    assert whole(architecture(num_hidden_layers=5)) == Part(range(5), is_first=True, is_last=True)
