"""What a rank holds at once: the formula, against a step driven on ranks that do not exist, part by part."""

import pytest

from tests.train_helpers import recipe
from train.dry_run import drive
from train.layout import lay_out
from train.peak import ACCURACY, GIB, Holding, added_up, dearest, stage_peaks

SHAPE = {
    "model__vocab_size": 2048,
    "model__hidden_size": 64,
    "model__intermediate_size": 160,
    "model__num_hidden_layers": 4,
    "model__max_position_embeddings": 512,
    "data__sequence_length": 256,
    "data__global_batch": 16,
    "data__validation_chunks": 0,
    "training__microbatch": 2,
}
PIPELINE = {"strategy": "pipeline", "pipeline__stages": 2, "training__microbatch": 1}
SHARDED = {**PIPELINE, "pipeline__data_parallel": "sharded"}
LAYOUTS = [
    (1, {}),
    (2, {}),
    (2, {"model__tie_word_embeddings": False, "data__global_batch": 4}),
    (4, {"fsdp__reshard_after_forward": False, "training__precision": "bf16"}),
    (4, {"fsdp__shard_size": 2, "training__activation_checkpointing": "full"}),
    (2, {"training__activation_checkpointing": "selective", "optimizer__name": "muon"}),
    (2, {"training__precision": "bf16", "training__activation_checkpointing": "full"}),
    (2, PIPELINE),
    pytest.param(4, {**PIPELINE, "pipeline__stages": 4}, marks=pytest.mark.long),
    (2, {**PIPELINE, "pipeline__schedule": "interleaved-1f1b", "model__tie_word_embeddings": False}),
    pytest.param(
        2, {**PIPELINE, "pipeline__schedule": "zero-bubble", "optimizer__name": "muon"}, marks=pytest.mark.long
    ),
    (2, {**PIPELINE, "training__activation_checkpointing": "selective", "training__precision": "bf16"}),
    (4, {**SHARDED, "training__activation_checkpointing": "full"}),
]


def holding(world_size=2, **changes):
    config = recipe(**{**SHAPE, **changes})
    return dearest(config, lay_out(config, world_size))[1]


@pytest.mark.parametrize(("world_size", "changes"), LAYOUTS, ids=str)
def test_a_rank_holds_at_once_what_the_formula_says(world_size, changes):
    config = recipe(**{**SHAPE, **changes})
    layout = lay_out(config, world_size)
    for stage, held in enumerate(stage_peaks(config, layout, "cpu")):
        assert held.total == pytest.approx(drive(config, layout, stage).peak_bytes, rel=ACCURACY)


def test_a_stage_holds_no_more_for_a_step_of_more_microbatches():
    """The losses of a step are kept to its end, and the inputs that they came from are not."""

    def held(global_batch):
        config = recipe(**{**SHAPE, **PIPELINE, "data__global_batch": global_batch})
        return drive(config, lay_out(config, 2), 1).peak_bytes - 16 * 256 * global_batch

    assert held(32) - held(8) < 24 * 8


def test_the_logits_of_a_chunk_are_gone_before_the_next_ones_are_made():
    one, several = (recipe(**{**SHAPE, "training__microbatch": number}) for number in (1, 4))
    loss = [stage_peaks(config, lay_out(config, 1), "cpu")[0].loss for config in (one, several)]
    assert loss[1] < 2 * loss[0]
    driven = drive(several, lay_out(several, 1), 0).peak_bytes
    assert stage_peaks(several, lay_out(several, 1), "cpu")[0].total == pytest.approx(driven, rel=0.02)


# properties


@pytest.mark.parametrize("changes", [{}, PIPELINE, {"training__precision": "bf16"}], ids=str)
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_larger_microbatch_never_needs_less(changes, recompute):
    shape = {**changes, "data__global_batch": 64, "training__activation_checkpointing": recompute}
    totals = [holding(**{**shape, "training__microbatch": 2**power}).total for power in range(5)]
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changes", [{}, PIPELINE, {"training__microbatch": 8}], ids=str)
def test_the_more_is_computed_again_the_less_is_held(changes, precision):
    totals = [
        holding(**{**changes, "training__precision": precision, "training__activation_checkpointing": mode}).total
        for mode in ("full", "selective", "none")
    ]
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]


@pytest.mark.parametrize(
    "changes",
    [
        {"model__hidden_size": 128},
        {"model__num_hidden_layers": 6},
        {"model__vocab_size": 4096},
        {"model__intermediate_size": 320},
        {"data__sequence_length": 512},
    ],
    ids=str,
)
@pytest.mark.parametrize("strategy", [{}, PIPELINE], ids=["fsdp", "pipeline"])
def test_whatever_is_larger_takes_more_memory(strategy, changes):
    assert holding(**{**strategy, **changes}).total > holding(**strategy).total


def test_more_ranks_hold_less_each_and_copies_do_not():
    assert holding(8, training__microbatch=1).total < holding(2, training__microbatch=1).total
    two, copies = holding(2, training__microbatch=1), holding(4, training__microbatch=1, fsdp__shard_size=2)
    assert (copies.weights, copies.optimizer) == (two.weights, two.optimizer)


def test_gradients_that_travel_once_are_held_whole_until_then():
    """`fully_shard` adds up the gradients of all but the last microbatch where they arise."""
    one, more = holding(data__global_batch=4), holding(data__global_batch=8)
    assert one.gradients < more.gradients == 2 * more.weights


# in words


def test_a_holding_says_its_parts_and_leaves_out_what_is_nothing():
    held = Holding(weights=GIB, activations=3 * GIB // 2)
    assert str(held) == "2.5 GiB (weights 1, activations 1.5)"
    assert str(held.times(2)) == "5 GiB (weights 2, activations 3)"
    assert added_up([held, held]) == held.times(2)
