import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from shared.errors import ConfigError
from tests.train_helpers import architecture, lively_model, recipe, some_ids
from train.attention import visible
from train.layout import Layout, block_parameters, flops_per_token, lay_out
from train.loss import token_loss
from train.model import ArgonneModel

# ranks as a grid

SMALL = {"training__microbatch": 1}
TWO_STAGES = {"strategy": "pipeline", "pipeline__stages": 2}
ODD = {"data__global_batch": 5, "data__validation_chunks": 0}
SHARDED = {"pipeline__data_parallel": "sharded"}
INTERLEAVED = {"pipeline__schedule": "interleaved-1f1b", "model__num_hidden_layers": 6}


@pytest.mark.parametrize(
    ("world_size", "changes", "layout"),
    [
        (1, {}, Layout("fsdp", 1, 1, 1, 2)),  # a global batch of 4 in microbatches of 2
        (2, {}, Layout("fsdp", 1, 1, 2, 1)),
        (1, {"training__microbatch": 4}, Layout("fsdp", 1, 1, 1, 1)),
        (4, {**SMALL, "fsdp__shard_size": 2}, Layout("fsdp", 1, 2, 2, 1)),
        (4, {**SMALL, "fsdp__shard_size": 1}, Layout("fsdp", 1, 4, 1, 1)),
        (1, {"strategy": "pipeline"}, Layout("pipeline", 1, 1, 1, 2)),
        (2, {"strategy": "pipeline"}, Layout("pipeline", 2, 1, 1, 2)),
        (4, {**TWO_STAGES, **SMALL}, Layout("pipeline", 2, 2, 1, 2)),
        (4, {**TWO_STAGES, **SMALL, "pipeline__stages": 1}, Layout("pipeline", 1, 4, 1, 1)),
        (4, {**TWO_STAGES, **SMALL, **SHARDED}, Layout("pipeline", 2, 1, 2, 2)),
        (4, {**TWO_STAGES, **SMALL, **SHARDED, "fsdp__shard_size": 1}, Layout("pipeline", 2, 2, 1, 2)),
        (2, {**TWO_STAGES, **INTERLEAVED}, Layout("pipeline", 2, 1, 1, 2, parts=2)),
        (2, {**TWO_STAGES, **INTERLEAVED, "pipeline__stages_per_rank": 3}, Layout("pipeline", 2, 1, 1, 2, parts=3)),
        (2, {**TWO_STAGES, "pipeline__schedule": "zero-bubble"}, Layout("pipeline", 2, 1, 1, 2)),
        (2, {"pipeline__stages": 2}, Layout("fsdp", 1, 1, 2, 1)),  # fsdp has no stages
    ],
)
def test_the_ranks_make_a_grid_of_stages_and_data(world_size, changes, layout):
    assert lay_out(recipe(**changes), world_size) == layout


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (Layout("fsdp", 1, 1, 2, 3), "fsdp over 2 ranks, 3 microbatches"),
        (Layout("fsdp", 1, 4, 2, 3), "fsdp over 4 copies of 2 shards, 3 microbatches"),
        (Layout("pipeline", 4, 2, 1, 8), "pipeline of 4 stages x 2 data-parallel, 8 microbatches"),
        (
            Layout("pipeline", 4, 2, 3, 8, 2),
            "pipeline of 4 stages of 2 parts x 6 data-parallel in 3 shards, 8 microbatches",
        ),
    ],
)
def test_a_layout_says_what_it_is(layout, text):
    assert str(layout) == text


@pytest.mark.parametrize(
    ("world_size", "changes", "message"),
    [
        (0, {}, "NPROC 0 is too small: at least 1 is wanted"),
        (-1, {}, "NPROC -1 is too small: at least 1 is wanted"),
        (
            3,
            {"strategy": "pipeline", "training__microbatch": 1},
            "3 pipeline stages are too many for model.num_hidden_layers 2: set --pipeline.stages to at most that",
        ),
        (
            3,
            {"strategy": "pipeline", "pipeline__stages": 2},
            "NPROC 3 is not a multiple of pipeline.stages 2: change one of them",
        ),
        (
            3,
            {},
            "data.global_batch 4 does not divide into microbatches of 2 on 3 data-parallel ranks: 6 does, or change "
            "training.microbatch or NPROC",
        ),
        (
            1,
            {"training__microbatch": 3},
            "data.global_batch 4 does not divide into microbatches of 3 on 1 data-parallel ranks: 3 does",
        ),
        (
            2,
            {"strategy": "pipeline", "training__microbatch": 4},
            r"1 microbatches cannot fill 2 pipeline stages \(1f1b needs at least one for each\): lower "
            "training.microbatch 4 or raise data.global_batch 4",
        ),
        (
            2,
            {**TWO_STAGES, **INTERLEAVED, "training__microbatch": 4},
            r"1 microbatches cannot fill 2 pipeline stages \(interleaved-1f1b needs at least one for each\)",
        ),
        (
            2,
            {**TWO_STAGES, "pipeline__schedule": "zero-bubble", **ODD, "training__microbatch": 1},
            "5 microbatches do not divide into 2 equal rounds for 2 pipeline stages, as pipeline.schedule zero-bubble "
            "wants: 4 do, with data.global_batch 4",
        ),
        (
            2,
            {**TWO_STAGES, "pipeline__stages_per_rank": 2},
            "pipeline.schedule 1f1b has one part of the model on a rank, pipeline.stages_per_rank is 2: set it to 1, "
            "or take interleaved-1f1b or zero-bubble",
        ),
        (
            2,
            {**TWO_STAGES, **INTERLEAVED, "pipeline__stages_per_rank": 1},
            "pipeline.schedule interleaved-1f1b with pipeline.stages_per_rank 1 is 1f1b: set that to 2 or more, or "
            "take 1f1b or zero-bubble",
        ),
        (
            1,
            {**TWO_STAGES, **INTERLEAVED, "pipeline__stages": 1},
            "pipeline.stages_per_rank 2 needs at least 2 pipeline stages, there is 1: raise NPROC or pipeline.stages, "
            "or take pipeline.schedule 1f1b with 1",
        ),
        (
            2,
            {**TWO_STAGES, **INTERLEAVED, "model__num_hidden_layers": 3},
            "2 pipeline stages of 2 parts are too many for model.num_hidden_layers 3: set pipeline.stages_per_rank to "
            "at most 1, or pipeline.stages to at most 1",
        ),
        (
            4,
            {**SMALL, "fsdp__shard_size": 3},
            "fsdp.shard_size 3 does not divide the 4 data-parallel ranks: one of 1, 2, 4 does",
        ),
    ],
)
def test_ranks_that_do_not_divide_are_refused(world_size, changes, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        lay_out(recipe(**changes), world_size)


# operations


def counted_flops(config, length):
    model = lively_model(config).train()
    ids = some_ids(1, length)
    with FlopCounterMode(display=False) as counter:
        token_loss(model(ids), ids).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": False}, {"num_key_value_heads": 1}, {"head_size": 12}], ids=str
)
@pytest.mark.parametrize("length", [16, 64])
def test_the_operations_of_a_token_are_those_that_torch_counts(changes, length):
    config = architecture(use_flash_attention=False, **changes)
    above_diagonal = 6 * config.num_hidden_layers * config.query_width * length  # masked, but computed and counted
    assert flops_per_token(config, length) + above_diagonal == counted_flops(config, length) / length


@pytest.mark.parametrize("window", [None, 1, 5, 64, 100])
def test_a_window_costs_what_is_seen_through_it(window):
    config, length = architecture(sliding_window=window), 64
    matrices = 2 * block_parameters(config) + 64 * 32
    seen = visible(length, length, window, torch.device("cpu")).sum().item() / length
    expected = 6 * (matrices + 2 * 2 * config.hidden_size * seen)
    assert flops_per_token(config, length) == pytest.approx(expected, rel=0.02)


def test_the_weights_of_a_block_are_those_of_its_matrices():
    block = ArgonneModel(architecture()).blocks["0"]
    matrices = [parameter for parameter in block.parameters() if parameter.ndim == 2]
    assert sum(matrix.numel() for matrix in matrices) == block_parameters(architecture())
