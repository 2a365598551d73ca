"""Layouts on ranks that do not exist: what was driven is what the formulas say."""

import math
from collections import Counter

import pytest

from tests.helpers import run_cli
from tests.train_helpers import architecture, recipe
from train.building import make_model
from train.dry_run import Seen, drive
from train.layout import lay_out
from train.layouts import candidates, check, check_layouts, differences
from train.legacy import legacy_config
from train.memory import state_bytes
from train.model import Part
from train.split import computed_costs, split_layers
from train.traffic import block_shapes, end_shapes, gathered, step_traffic

BASE = {"model__num_hidden_layers": 4, "data__global_batch": 16, "data__validation_chunks": 0}
SHARDED = {"strategy": "pipeline", "pipeline__stages": 2, "pipeline__data_parallel": "sharded"}
LAYOUTS = [
    {"strategy": "fsdp"},
    {"strategy": "fsdp", "fsdp__reshard_after_forward": False},
    {"strategy": "fsdp", "fsdp__shard_size": 2},
    {"strategy": "fsdp", "fsdp__shard_size": 1},
    {"strategy": "fsdp", "training__precision": "bf16"},
    {"strategy": "pipeline", "pipeline__stages": 4},
    {"strategy": "pipeline", "pipeline__stages": 2, "pipeline__schedule": "zero-bubble"},
    SHARDED,
    {**SHARDED, "fsdp__shard_size": 2, "pipeline__schedule": "interleaved-1f1b"},
    {**SHARDED, "pipeline__schedule": "zero-bubble", "model__tie_word_embeddings": False},
]


@pytest.mark.parametrize("changes", LAYOUTS, ids=str)
def test_a_step_sends_and_holds_what_the_formulas_say(changes):
    config = recipe(**{**BASE, "training__microbatch": 1, **changes})
    layout = lay_out(config, 8)
    parts = split_layers(4, layout, computed_costs(config.model, config.data.sequence_length))
    for stage in range(layout.num_stages):
        seen = drive(config, layout, stage)
        assert seen.traffic == step_traffic(config, layout, parts, stage)
        assert seen.state_bytes == state_bytes(config, layout, parts, stage)
        assert seen.traffic.total() > 0
    assert check(config, layout, 4).differences == []


def traffic(**changes):
    config = recipe(**{**BASE, "training__microbatch": 1, **changes})
    layout = lay_out(config, 4)
    parts = split_layers(4, layout, computed_costs(config.model, 16))
    return drive(config, layout, 0).traffic, step_traffic(config, layout, parts, 0)


def test_weights_that_are_kept_are_gathered_once_in_a_step_of_four_microbatches():
    again, kept = (traffic(fsdp__reshard_after_forward=reshards)[0]["gather"] for reshards in (True, False))
    assert 4 * kept < again <= 8 * kept
    assert traffic(fsdp__reshard_after_forward=True)[0]["scatter"] == traffic()[0]["scatter"]


def test_hybrid_sharding_gathers_within_the_shards_and_adds_up_over_the_copies():
    all_ranks, hybrid = traffic()[0], traffic(fsdp__shard_size=2)[0]
    assert hybrid["gather"] < all_ranks["gather"]
    assert hybrid["reduce"] > all_ranks["reduce"] == 0


def test_bf16_halves_what_is_gathered_of_blocks_and_adds_gradients_in_fp32():
    full, half = traffic()[0], traffic(training__precision="bf16")[0]
    assert half["gather"] < 0.6 * full["gather"]
    assert half["scatter"] == full["scatter"]


@pytest.mark.parametrize(
    "config",
    [
        architecture(),
        architecture(attention_bias=True, tie_word_embeddings=False, head_size=12),
        architecture(mlp_bias=True, qk_norm=True),
        legacy_config(vocab_size=64, block_size=24, n_layer=2, n_head=4, n_embd=36),
    ],
    ids=["2.0", "wide heads", "biased", "1.x"],
)
def test_the_shapes_are_those_of_the_model(config):
    block = make_model(config).blocks["0"]
    assert sorted(tuple(p.shape) for p in block.parameters()) == sorted(block_shapes(config))
    for is_first, is_last in ((True, False), (False, False), (False, True), (True, True)):
        part = make_model(config, Part(range(0), is_first, is_last))
        shapes = end_shapes(config, is_first=is_first, is_last=is_last)
        assert sum(p.numel() for p in part.parameters()) == sum(map(math.prod, shapes))


def test_a_ring_moves_all_but_a_ranks_own_share():
    assert [gathered(1200, ranks) for ranks in (1, 2, 3)] == [0, 600, 800]


def test_hybrid_sharding_is_left_out_where_it_is_the_same():
    names = [str(lay_out(candidate, 4)) for candidate in candidates(recipe(**BASE), 4, stages=2, shard_size=4)]
    assert names == [
        "fsdp over 4 ranks, 2 microbatches",
        "pipeline of 2 stages x 2 data-parallel, 4 microbatches",
        "pipeline of 2 stages x 2 data-parallel in 2 shards, 4 microbatches",
    ]


def test_only_some_microbatches_are_driven_and_all_are_counted():
    config = recipe(**{**BASE, "training__microbatch": 1, "data__global_batch": 64})
    few, all_ = (next(check_layouts(config, [8], 2, 8, microbatches)) for microbatches in (1, 8))
    assert (few.sent_bytes, few.state_bytes, few.layout) == (all_.sent_bytes, all_.state_bytes, all_.layout)
    assert few.layout.microbatches == 8


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (Seen(Counter(gather=8), 16, 1000), []),
        (Seen(Counter(gather=8), 16, 1090), []),  # what autograd keeps is known to a tenth
        (Seen(Counter(gather=9), 16, 1000), ["stage 1 sends gather 9, formula gather 8"]),
        (Seen(Counter(gather=8), 17, 1000), ["stage 1 holds 17 B, formula 16"]),
        (Seen(Counter(gather=8), 16, 1110), ["stage 1 keeps 1,110 B for backward, formula 1,000"]),
    ],
)
def test_a_difference_is_told(found, told):
    assert list(differences(1, found, Seen(Counter(gather=8), 16, 1000))) == told


@pytest.mark.slow
def test_the_command_prints_a_line_for_every_layout():
    options = ("--ranks", 8, 16, "--training.microbatch", 1, "--model.num-hidden-layers", 4, "--vocabulary", 500)
    done = run_cli("train", "layouts", "--recipe", "tiny", *options, "--data.global-batch", 64)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 3 + 4
    assert all(line.endswith("agrees") for line in lines[1:])
