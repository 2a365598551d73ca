from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from shared.errors import ConfigError
from tests.train_helpers import architecture, lively_model, recipe, some_ids
from train.attention import visible
from train.layout import (
    BYTES_PER_PARAMETER,
    Layout,
    block_parameters,
    flops_per_token,
    lay_out,
    num_parameters,
    split_layers,
    stage_bytes,
)
from train.loss import token_loss
from train.model import ArgonneModel

# ranks as a grid


@pytest.mark.parametrize(
    ("world_size", "changes", "layout"),
    [
        (1, {}, Layout("fsdp", 1, 1, 2)),  # a global batch of 4 in microbatches of 2
        (2, {}, Layout("fsdp", 1, 2, 1)),
        (1, {"training__microbatch": 4}, Layout("fsdp", 1, 1, 1)),
        (1, {"strategy": "pipeline"}, Layout("pipeline", 1, 1, 2)),
        (2, {"strategy": "pipeline"}, Layout("pipeline", 2, 1, 2)),
        (4, {"strategy": "pipeline", "pipeline__stages": 2, "training__microbatch": 1}, Layout("pipeline", 2, 2, 2)),
        (4, {"strategy": "pipeline", "pipeline__stages": 1, "training__microbatch": 1}, Layout("pipeline", 1, 4, 1)),
        (2, {"pipeline__stages": 2}, Layout("fsdp", 1, 2, 1)),  # fsdp has no stages
    ],
)
def test_the_ranks_make_a_grid_of_stages_and_data(world_size, changes, layout):
    assert lay_out(recipe(**changes), world_size) == layout


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (Layout("fsdp", 1, 2, 3), "fsdp over 2 ranks, 3 microbatches"),
        (Layout("pipeline", 4, 2, 8), "pipeline of 4 stages x 2 data-parallel, 8 microbatches"),
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
            {"strategy": "pipeline"},
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
            r"1 microbatches cannot fill 2 pipeline stages \(1F1B needs at least one for each\): lower "
            "training.microbatch 4 or raise data.global_batch 4",
        ),
    ],
)
def test_ranks_that_do_not_divide_are_refused(world_size, changes, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        lay_out(recipe(**changes), world_size)


# layers to stages


def stage_costs(config, stages, length):
    """The plain way: multiplications of each stage for one token."""
    block = block_parameters(config) + config.hidden_size * length
    costs = [block * len(layers) for layers in stages]
    costs[0] += config.hidden_size
    costs[-1] += config.vocab * config.hidden_size
    return costs


def all_splits(num_layers, num_stages):
    for cuts in combinations(range(1, num_layers), num_stages - 1):
        yield [range(first, end) for first, end in pairwise((0, *cuts, num_layers))]


@settings(deadline=None, max_examples=60)
@given(
    layers=st.integers(1, 8),
    data=st.data(),
    vocab=st.integers(1, 3000),
    feed_forward=st.integers(1, 100),
    length=st.integers(1, 200),
)
def test_no_other_split_has_a_cheaper_dearest_stage(layers, data, vocab, feed_forward, length):
    num_stages = data.draw(st.integers(1, layers))
    config = architecture(num_hidden_layers=layers, vocab_size=vocab, intermediate_size=feed_forward)
    stages = split_layers(config, num_stages, length)
    assert [layer for stage in stages for layer in stage] == list(range(layers))
    assert len(stages) == num_stages
    assert all(stages)
    best = min(max(stage_costs(config, split, length)) for split in all_splits(layers, num_stages))
    assert max(stage_costs(config, stages, length)) == best


@pytest.mark.parametrize(("vocab", "last"), [(1, 4), (600, 3), (5000, 1)])
def test_a_wider_head_takes_layers_from_the_last_stage(vocab, last):
    config = architecture(num_hidden_layers=8, vocab_size=vocab)
    assert len(split_layers(config, 2, 16)[-1]) == last


# memory


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


@pytest.mark.parametrize("tied", [True, False])
def test_the_stages_hold_the_matrices_of_their_layers(tied):
    sizes = bytes_of(2, strategy="pipeline", model__tie_word_embeddings=tied)
    block, embedding = block_parameters(architecture()), 64 * 32  # a tied head has a copy of its own here
    assert sizes == [(block + embedding) * 16, (block + embedding) * 16 + 2 * 16 * 64 * 4]


# operations


def counted_flops(config, length):
    model = lively_model(config).train()
    ids = some_ids(1, length)
    with FlopCounterMode(display=False) as counter:
        token_loss(model(ids), ids).backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"num_key_value_heads": 1}], ids=str)
@pytest.mark.parametrize("length", [16, 64])
def test_the_operations_of_a_token_are_those_that_torch_counts(changes, length):
    config = architecture(use_flash_attention=False, **changes)
    above_diagonal = 6 * config.num_hidden_layers * config.hidden_size * length  # masked, but computed and counted
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
