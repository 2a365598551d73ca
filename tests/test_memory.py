import pytest
import torch

from tests.train_helpers import architecture, recipe, some_ids
from train.building import build_model
from train.counting import Kept
from train.layout import block_parameters, lay_out, num_parameters
from train.memory import (
    BYTES_PER_PARAMETER,
    activation_bytes,
    block_activation_bytes,
    head_activation_bytes,
    most_layers,
    rotary_bytes,
    stage_bytes,
    state_bytes,
)
from train.model import Part
from train.strategy import precision_context

CPU = torch.device("cpu")
WIDE = {"model__hidden_size": 64, "model__intermediate_size": 160, "data__sequence_length": 48}


def bytes_of(world_size=1, **changes):
    config = recipe(**changes)
    return stage_bytes(config, lay_out(config, world_size))


@pytest.mark.parametrize(
    "changes",
    [
        {"model__hidden_size": 64},
        {"model__num_hidden_layers": 3},
        {"model__vocab_size": 128},
        {"model__intermediate_size": 64},
        {"model__tie_word_embeddings": False},
        {"data__sequence_length": 32},
        {"training__microbatch": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("strategy", ["fsdp", "pipeline"])
def test_whatever_is_larger_takes_more_memory(strategy, changes):
    assert sum(bytes_of(strategy=strategy, **changes)) > sum(bytes_of(strategy=strategy))


def test_a_rank_holds_its_share_of_the_weights_and_all_of_its_logits():
    weights = num_parameters(architecture()) * BYTES_PER_PARAMETER
    logits = 2 * 16 * 64 * 4
    assert bytes_of(1) == [weights + logits]
    assert bytes_of(2) == [weights // 2 + logits]


def test_copies_of_the_weights_do_not_make_a_rank_hold_less():
    assert bytes_of(4, training__microbatch=1, fsdp__shard_size=2) == bytes_of(2, training__microbatch=1)


@pytest.mark.parametrize("tied", [True, False])
def test_the_stages_hold_the_matrices_of_their_layers(tied):
    sizes = bytes_of(2, strategy="pipeline", model__tie_word_embeddings=tied)
    block, embedding = block_parameters(architecture()), 64 * 32  # a tied head has a copy of its own here
    assert sizes == [(block + embedding) * 16, (block + embedding) * 16 + 2 * 16 * 64 * 4]


def test_a_sharded_pipeline_holds_a_share_of_each_stage():
    changes = {"strategy": "pipeline", "pipeline__stages": 2, "training__microbatch": 1}
    copies, shards = bytes_of(4, **changes), bytes_of(4, **changes, pipeline__data_parallel="sharded")
    assert shards[0] == copies[0] // 2


# activations


def kept_bytes(config, part):
    """What autograd keeps of a forward pass of a part, the copies that autocast makes of weights aside."""
    model = build_model(config, part)
    model.to_empty(device=CPU)
    model.initialize(0)
    size = config.training.microbatch, config.data.sequence_length
    hidden = torch.randn(*size, config.model.hidden_size, requires_grad=True)
    ids = some_ids(*size)
    with Kept() as kept, precision_context(config, CPU):
        output = model(ids if part.is_first else hidden, ids)
    assert output.requires_grad
    return kept.now


@pytest.mark.parametrize(("precision", "flash"), [("fp32", True), ("fp32", False), ("bf16", True)])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_autograd_keeps_of_a_block_what_the_formula_says(precision, recompute, flash):
    config = recipe(
        **WIDE,
        training__precision=precision,
        training__activation_checkpointing=recompute,
        model__use_flash_attention=flash,
    )
    formula = block_activation_bytes(config, recompute)
    if recompute == "none":
        formula += rotary_bytes(config) + 2 * block_parameters(config.model) * (precision == "bf16")
    measured = kept_bytes(config, Part(range(1), is_first=False, is_last=False))
    assert measured == pytest.approx(formula, rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_autograd_keeps_of_the_head_what_the_formula_says(precision):
    config = recipe(**WIDE, training__precision=precision, model__vocab_size=640)
    measured = kept_bytes(config, Part(range(0), is_first=False, is_last=True)) - rotary_bytes(config)
    assert measured == pytest.approx(head_activation_bytes(config), rel=0.1)


def test_the_first_stage_holds_the_activations_of_the_most_microbatches():
    changes = {"strategy": "pipeline", "pipeline__stages": 4, "model__num_hidden_layers": 4, "model__vocab_size": 1}
    config = recipe(**changes, data__global_batch=8, data__validation_chunks=0, training__microbatch=1)
    sizes = activation_bytes(config, lay_out(config, 4), [range(n, n + 1) for n in range(4)])
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] == 3 * (block_activation_bytes(config, "none") + rotary_bytes(config))


def test_a_stage_has_room_for_the_layers_that_its_memory_holds():
    changes = {"strategy": "pipeline", "model__num_hidden_layers": 8, "training__microbatch": 1}
    config = recipe(**changes)
    layout = lay_out(config, 2)
    split = [range(3), range(3, 8)]
    held = activation_bytes(config, layout, split)
    needed = max(state_bytes(config, layout, split, stage) + held[stage] for stage in range(2))
    room = most_layers(config, layout, needed)
    assert room[0] >= 3
    assert room[1] >= 5
    assert sum(most_layers(config, layout, 2 * needed)) > sum(room)
    assert most_layers(config, layout, 1) == [0, 0]


def test_recomputing_blocks_holds_less():
    sizes = [block_activation_bytes(recipe(**WIDE), recompute) for recompute in ("full", "selective", "none")]
    assert sizes[2] > 1.3 * sizes[1] > 1.3 * 5 * sizes[0]


def test_a_longer_stride_holds_more():
    def held(stride):
        changes = {"training__activation_checkpointing": "full", "training__checkpoint_stride": stride}
        config = recipe(**changes, model__num_hidden_layers=4)
        return activation_bytes(config, lay_out(config, 1), [range(4)])[0]

    assert held(1) < held(2) < held(4)
    difference = block_activation_bytes(recipe(), "none") - block_activation_bytes(recipe(), "full")
    assert held(2) - held(1) == 2 * difference
