"""A run that goes on at another sequence length, with the tokens that it would have read there anyway."""

import numpy as np
import pytest
import torch

from shared.errors import ConfigError, FormatError
from shared.format import read_index
from tests.train_helpers import group_of_one, random_tokens, recipe, unasked, write_tokens
from train.checkpoint_directory import read_manifests
from train.config import DataConfig
from train.data import ChunkReader, chain_digest
from train.lengths import why_other_tokens
from train.preflight import prepare
from train.request import RunRequest
from train.run import execute
from train.views import open_view

CPU = torch.device("cpu")
SHORT = {"data__sequence_length": 8, "data__shuffle_length": 32, "data__validation_chunks": 8}
LONG = {"data__sequence_length": 16, "data__shuffle_length": 32, "data__validation_chunks": 4}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Two shards of 12 units of 32 targets and 15 targets more, of which the last two units are held out."""
    directory = tmp_path_factory.mktemp("tokens")
    write_tokens(directory, [random_tokens(400), random_tokens(400, seed=1)], vocab_size=64)
    return directory


@pytest.fixture
def stop():
    """Nobody asks to stop."""
    with group_of_one():
        yield unasked()


def prepared(tokens, run, stop_step=None, **changes):
    return prepare(RunRequest(tokens, run, recipe(checkpoint__every=1, **changes), stop_step), 1)


def seen(tokens, changes, start, batches):
    """(shard, place) of each target of so many global batches from position `start` on, and their digests."""
    config = recipe(**changes)
    reader = ChunkReader(open_view(tokens, read_index(tokens), config), config, 0, 1, CPU)
    places, digests = [], []
    for position in range(start, start + 4 * batches, 4):
        spans = reader.spans(position)
        for shard, first, size in zip(
            *(part.tolist() for part in (spans.shards, spans.starts, spans.sizes)), strict=True
        ):
            places += [(shard, first + number) for number in range(size - 1)]
        digests.append(reader.fetch(position)[0].row_digests)
    reader.close()
    return places, digests


def test_a_run_goes_on_at_a_doubled_length_with_the_tokens_that_it_has_not_seen_in_the_same_order(
    tokens, tmp_path, stop
):
    run = tmp_path / "run"
    execute(prepared(tokens, run, stop_step=2, **SHORT), CPU, stop)
    progress = execute(prepared(tokens, run, training__total_steps=12, **LONG), CPU, stop)
    before, first = seen(tokens, SHORT, 0, 2)
    after, then = seen(tokens, LONG, 4, 10)  # 8 chunks of 8 are 4 of 16
    chained = ""
    for digests in (*first, *then):
        chained = chain_digest(chained, digests)
    assert (progress.data_digest, progress.tokens) == (chained, len(before) + len(after))
    uninterrupted, _ = seen(tokens, SHORT, 0, 22)
    assert before + after[: len(uninterrupted) - len(before)] == uninterrupted
    whole_epoch = {(shard, place) for shard in (0, 1) for place in range((399, 10 * 32)[shard])}
    assert len({*before, *after}) == len(before) + len(after)
    assert {*before, *after} < whole_epoch
    assert len(whole_epoch) - len(before) - len(after) < 64  # less than a global batch is left


def test_a_run_in_the_middle_of_a_longer_chunk_is_refused_with_the_step_that_leads_out_of_it(tokens, tmp_path, stop):
    run, batch = tmp_path / "run", {"data__global_batch": 3, "training__microbatch": 3}
    short, long = SHORT | batch | {"data__validation_chunks": 12}, LONG | batch | {"data__validation_chunks": 6}
    execute(prepared(tokens, run, stop_step=3, **short), CPU, stop)
    message = (
        r"run is at step 3, 8 tokens into a chunk of 16: train on to step 4 with data.sequence_length 8 "
        r"\(--stop-step 4\) first, or continue a copy whose newest checkpoint is of step 2$"
    )
    with pytest.raises(ConfigError, match=message):
        prepared(tokens, run, **long)
    execute(prepared(tokens, run, stop_step=4, **short), CPU, stop)
    assert prepared(tokens, run, **long).config.data.sequence_length == 16


def test_a_checkpoint_in_the_middle_of_a_longer_chunk_is_not_loaded(tokens, tmp_path, stop):
    """Also where the newer one, from which the run could go on, is found to be damaged."""
    run, batch = tmp_path / "run", {"data__global_batch": 3, "training__microbatch": 3}
    short, long = SHORT | batch | {"data__validation_chunks": 12}, LONG | batch | {"data__validation_chunks": 6}
    execute(prepared(tokens, run, stop_step=2, **short), CPU, stop)
    (run / "checkpoints/step-00000002/__0_0.distcp").write_bytes(b"")
    assert [manifest["step"] for manifest in read_manifests(run / "checkpoints")] == [1, 2]
    message = (
        r"step-00000001 is in the middle of a chunk of 16: continue it with data.sequence_length 8, to the end of one"
    )
    with pytest.raises(FormatError, match=message):
        execute(prepared(tokens, run, **long), CPU, stop)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"validation_chunks": 2}, None),
        ({"validation_chunks": 4}, "64 tokens are held out: data.validation_chunks 2 of 32 would be the same"),
        ({"shuffle_length": None}, "without data.shuffle_length the chunks of 16 are what was shuffled"),
        ({"shuffle_length": None, "order": "natural"}, "without data.shuffle_length the last chunks of 16 are what is"),
        ({"shuffle_length": None, "packing": "best-fit"}, "the chunks of a packing are of one length, here 16"),
    ],
    ids=str,
)
def test_another_length_is_for_the_same_tokens_read_and_held_out(changes, reason):
    fields = {"global_batch": 1, "shuffle_length": 96, "validation_chunks": 2, **changes}
    found = why_other_tokens(DataConfig(16, **{**fields, "validation_chunks": 4}), DataConfig(32, **fields))
    assert found == reason if reason is None else found.startswith(reason)


def test_no_number_of_longer_chunks_may_be_what_was_held_out():
    before, now = (DataConfig(length, 1, shuffle_length=96, validation_chunks=3) for length in (16, 32))
    assert why_other_tokens(before, now) == "48 tokens are held out: no number of chunks of 32 would be the same"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shuffle_length": 24}, r"data.shuffle_length 24 is not a multiple of data.sequence_length 16: .* is$"),
        ({"shuffle_length": 0}, "data.shuffle_length 0 is too small: at least 1 is wanted"),
        (
            {"shuffle_length": 32, "packing": "whole"},
            "data.shuffle_length 32 is given with data.packing whole, whose chunks are of one length: set one of them",
        ),
    ],
    ids=str,
)
def test_units_are_of_whole_chunks_of_the_plain_stream(changes, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(16, **changes)


def test_the_held_out_tokens_are_the_same_at_a_doubled_length(tokens):
    found = []
    for changes, batches in ((SHORT, 2), (LONG, 1)):
        config = recipe(**changes)
        reader = ChunkReader(open_view(tokens, read_index(tokens), config), config, 0, 1, CPU)
        found.append(np.concatenate([reader.held_out(4 * number).targets_BT.reshape(-1) for number in range(batches)]))
        reader.close()
    assert (found[0] == found[1]).all()
    assert found[0].tolist() == random_tokens(400, seed=1)[10 * 32 + 1 : 12 * 32 + 1]
