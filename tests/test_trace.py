"""`trace` against what the readers of real runs wrote down, and against itself in the other direction."""

import json
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train.run
from preprocess.config import PackSettings
from preprocess.pack import pack
from shared.errors import FormatError
from shared.format import open_documents, read_index
from tests.helpers import on_ranks
from tests.recording import Texts, recorded, recording
from tests.train_helpers import group_of_one, plain, recipe, unasked, write_documents
from train.checkpoint_directory import step_of
from train.held_out import held_out
from train.loss_colours import mean_loss
from train.preflight import prepare
from train.replay import Replay
from train.request import RunRequest
from train.run import execute
from train.single import SingleStrategy
from train.token_losses import TokenLosses
from train.trace import Trace

CPU = torch.device("cpu")
ALL = {"data__validation_chunks": 8, "training__microbatch": 1, "checkpoint__every": None}
UNITS = {"data__shuffle_length": 32}
FSDP, PIPELINE = {"strategy": "fsdp"}, {"strategy": "pipeline"}
LONGER = {"data__sequence_length": 32, "data__validation_chunks": 4, "data__global_batch": 4}
CASES = {  # options of the whole run, then those of each start on two ranks
    "natural": ({"data__order": "natural"}, [PIPELINE, FSDP]),
    "shuffled": ({}, [FSDP | {"data__global_batch": 8}, PIPELINE | {"training__microbatch": 2}]),
    "units": (UNITS, [FSDP | LONGER, PIPELINE | LONGER]),
    "packed": ({"data__packing": "best-fit"}, [FSDP, PIPELINE]),
    "packed, natural": ({"data__packing": "whole", "data__order": "natural"}, [PIPELINE]),
}


def shards_of(num_shards, seed=0):
    """Sizes of documents: empty rows, short and long ones; one shard has no text, and one ends in a short chunk."""
    draw = random.Random(seed)
    shards = [[draw.choice([0, 2, 3, 5, 8, 13, 40, 100]) for _ in range(20)] for _ in range(num_shards)]
    return [*shards[:1], [0, 0], *shards[1:], [2, 3]]


def dataset(directory, num_shards):
    shards = shards_of(num_shards)
    end = sum(max(size - 1, 0) for sizes in shards for size in sizes)
    write_documents(directory, shards, vocab_size=end + 1, end=end)
    for method in ("best-fit", "whole"):
        pack(directory, PackSettings(16, method, workers=1))
    return SimpleNamespace(tokens=directory, texts=Texts(shards, end), end=end)


def config(data, total_steps, **changes):
    return recipe(**{**ALL, "model__vocab_size": data.end + 1, "training__total_steps": total_steps, **changes})


def executed(data, run, stop_step, total_steps=10**4, **changes):
    """A run of this process alone, which writes down what it reads."""
    with pytest.MonkeyPatch.context() as patch, recording(run.with_name(f"{run.name} records")):
        patch.setattr(train.run, "measured_peak_flops", lambda device, dtype: 1e9)
        request = RunRequest(data.tokens, run, config(data, total_steps, **changes), stop_step)
        execute(prepare(request, 1), CPU, unasked())


def merged(parts):
    """Parts of a document that stand end to end in a chunk as one."""
    rows = {}
    for row, start, stop in parts:
        before = rows.get(row, (start, stop))
        rows[row] = min(before[0], start), max(before[1], stop)
    return sorted((row, *extent) for row, extent in rows.items())


def seen(data, sequences):
    return [(sorted(data.texts.parts(s["inputs"], s["targets"])), s["microbatch"]) for s in sequences]


def assert_traced(data, run, steps):
    """Everything that was recorded of `steps` is what is traced, on every rank, in order; the number of sequences."""
    records, count = recorded(run.with_name(f"{run.name} records")), 0
    trace = Trace(Replay(run))
    for step in steps:
        found = by_rank(trace.step(step).chunks)
        assert found.keys() == records[step].keys(), step
        for number, sequences in records[step].items():
            wanted = seen(data, sequences)
            mine = [
                (documents, None if wanted[0][1] is None else microbatch) for documents, microbatch in found[number]
            ]
            assert mine == wanted, (step, number)
            count += len(wanted)
    return count


def by_rank(chunks):
    found = {}
    for chunk in chunks:
        parts = merged([(part.row, part.start, part.stop) for part in chunk.documents])
        for number in chunk.ranks:
            found.setdefault(number, []).append((parts, chunk.microbatch))
    return found


def carried_out(data, directory, cases, num_steps, num_processes=2):
    """Each case by one process, then by several: the steps of each, two epochs of them or more."""
    jobs, steps = [], {}
    for name, (whole, starts) in cases.items():
        run = directory / name
        executed(data, run, num_steps, **whole)
        for number, changes in enumerate(starts, 2):
            job = {"tokens": str(data.tokens), "run": str(run), "records": str(directory / f"{name} records")}
            changed = plain(config(data, 10**4, **whole, **changes))
            jobs.append({**job, "config": changed, "stop_step": number * num_steps})
        steps[name] = num_steps * (1 + len(starts))
    (directory / "jobs.json").write_text(json.dumps(jobs))
    on_ranks(num_processes, "tests.recording_worker", directory / "jobs.json")
    return steps


@pytest.fixture(scope="module")
def group():
    with group_of_one():
        yield


@pytest.fixture(scope="module")
def runs(group, tmp_path_factory):
    """A dataset, and runs over it that changed their layout on the way."""
    directory = tmp_path_factory.mktemp("traced")
    data = dataset(directory / "tokens", 3)
    return SimpleNamespace(data=data, directory=directory, steps=carried_out(data, directory, CASES, 14))


@pytest.mark.parametrize("name", CASES)
def test_every_step_has_the_documents_ranks_and_microbatches_that_its_readers_wrote_down(runs, name):
    steps = range(1, runs.steps[name] + 1)
    assert assert_traced(runs.data, runs.directory / name, steps) > 4 * len(steps)
    epochs = {chunk.epoch for step in steps for chunk in Trace(Replay(runs.directory / name)).step(step).chunks}
    assert len(epochs) > 1


FOUR_RANKS = {  # pipelines side by side, and copies of shards
    "natural": ({"data__order": "natural"}, [PIPELINE | {"pipeline__stages": 2}]),
    "shuffled": ({}, [FSDP | {"fsdp__shard_size": 2}]),
    "packed": ({"data__packing": "best-fit"}, [PIPELINE | {"pipeline__stages": 2}]),
}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("cases", "num_processes"), [(CASES, 2), (FOUR_RANKS, 4)], ids=["2 ranks", "4 ranks"])
def test_500_random_steps_are_what_their_readers_wrote_down(group, tmp_path, cases, num_processes):
    data = dataset(tmp_path / "tokens", 11)
    steps = carried_out(data, tmp_path, cases, 140, num_processes)  # where a chunk of 32 begins, in the third epoch
    every = [(name, step) for name, last in steps.items() for step in range(1, last + 1)]
    drawn = random.Random(1).sample(every, 500)
    for name in cases:
        mine = sorted(step for other, step in drawn if other == name)
        assert assert_traced(data, tmp_path / name, mine) >= 4 * len(mine)
        assert Trace(Replay(tmp_path / name)).step(steps[name]).chunks[-1].epoch > 1


def sequence_losses(hit, becomes):
    """What becomes of the loss of each microbatch that has the id `hit`."""
    plain_loss = SingleStrategy._loss

    def loss(self, batch):
        return becomes(plain_loss(self, batch)) if (batch.inputs_BT == hit).any() else plain_loss(self, batch)

    return loss


def faulty(data, run, step, becomes, **changes):
    """A run of 40 steps on one process in which the loss of `step` becomes another one."""
    position = 4 * (step - 1)
    hit = next(number for number in range(16 * position + 1, 16 * position + 64) if number in data.texts.places)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SingleStrategy, "_loss", sequence_losses(hit, becomes))
        executed(data, run, None, 40, data__order="natural", data__validation_chunks=0, **changes)
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def plain_data(group, tmp_path_factory):
    """A shard of 200 chunks of 16 ids, each of a document of its own."""
    directory, shards = tmp_path_factory.mktemp("faulty") / "tokens", [[16] * 200 + [2]]
    write_documents(directory, shards, vocab_size=3005, end=3004)
    return SimpleNamespace(tokens=directory, texts=Texts(shards, 3004), end=3004)


def rows(step):
    return [part.row for chunk in step.chunks for part in chunk.documents if part.num_tokens - part.start > 1]


def test_a_skipped_step_has_its_documents_and_taught_nothing(plain_data, tmp_path):
    run = tmp_path / "run"
    events = faulty(plain_data, run, 9, lambda loss: loss * float("nan"))
    (bad,) = [event for event in events if event["event"] == "bad-step"]
    assert assert_traced(plain_data, run, range(1, 41)) == 160
    trace = Trace(Replay(run))
    step = trace.step(bad["step"])
    assert [step.learned, step.loss, trace.step(bad["step"] + 1).learned] == [False, None, True]
    source, row = step.chunks[1].documents[0].source, step.chunks[1].documents[0].row
    assert {(s.step, s.learned) for s in trace.sightings(source, row)} >= {(bad["step"], False)}


def test_a_rollback_undoes_what_was_seen_since_and_goes_on_behind_it(plain_data, tmp_path):
    run, options = tmp_path / "run", {"checkpoint__every": 4, "checkpoint__keep": 9, "recovery__rollback_steps": 4}
    events = faulty(plain_data, run, 22, lambda loss: loss * 50, **options)
    (back,) = [event for event in events if event["event"] == "rollback"]
    assert assert_traced(plain_data, run, range(1, 41)) == 160
    trace = Trace(Replay(run))
    behind = trace.step(back["to"] + 1).chunks[0]
    assert behind.position == 4 * back["step"]
    skipped = {row for step in range(back["to"] + 1, back["step"] + 1) for row in range(4 * step - 4, 4 * step)}
    for row in sorted(skipped)[1:]:  # the first of them is a target of the chunk before
        sightings = trace.sightings("a.parquet", row)
        assert {s.state for s in sightings if s.chunk.position < behind.position} == {"undone"}, row


def test_a_smaller_microbatch_counts_from_the_step_that_memory_ran_out_in(plain_data, tmp_path):
    run, failed = tmp_path / "run", []

    def once(loss):
        failed.append(loss)
        if len(failed) == 1:
            raise torch.OutOfMemoryError("a test's")
        return loss

    events = faulty(plain_data, run, 9, once, training__microbatch=2)
    (backoff,) = [event for event in events if event["event"] == "backoff"]
    assert (backoff["from"], backoff["to"]) == (2, 1)
    assert assert_traced(plain_data, run, range(1, 41)) == 160
    numbers = [
        [chunk.microbatch for chunk in Trace(Replay(run)).step(step).chunks]
        for step in (backoff["step"] - 1, backoff["step"])
    ]
    assert numbers == [[0, 0, 1, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize("name", CASES)
def test_a_document_was_seen_at_exactly_the_steps_that_have_it(runs, name):
    """Steps to documents and documents to steps are inverse, over all steps that were and some that will be."""
    trace, last = Trace(Replay(runs.directory / name)), runs.steps[name]
    trace.replay.total_steps = last + 5
    forwards = {}
    for step in range(1, last + 6):
        seen_step = trace.step(step)
        assert seen_step.state == ("done" if step <= last else "to come")
        for chunk in seen_step.chunks:
            for part in chunk.documents:
                forwards.setdefault(part.row, set()).add(
                    (step, chunk.position, part.start, part.stop, chunk.microbatch)
                )
    for row, (source, size) in enumerate(every_row(runs.data)):
        backwards = {
            (s.step, s.chunk.position, part.start, part.stop, s.chunk.microbatch)
            for s in trace.sightings(source, row)
            for part in s.chunk.documents
        }
        assert backwards == forwards.get(row, set()), (row, size)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data__packing": "best-fit"},
        {"data__packing": "whole", "data__document_mask": True, "data__restart_positions": True},
    ],
    ids=str,
)
def test_the_losses_of_a_step_by_the_checkpoint_before_it_are_what_it_recorded(runs, tmp_path, changes):
    executed(runs.data, tmp_path / "run", 4, checkpoint__every=1, checkpoint__keep=9, **changes)
    replay = Replay(tmp_path / "run")
    losses, trace = TokenLosses(replay), Trace(replay)
    for number in (2, 4):
        step = trace.step(number)
        assert step_of(losses.checkpoint(number)) == number - 1
        path, found = losses.of(step)
        assert path == losses.checkpoint(number)
        assert [len(part) for chunk in found for part in chunk.parts] == [
            part.stop - part.start for chunk in step.chunks for part in chunk.documents
        ]
        every = [loss for chunk in found for part in chunk.parts for loss in part]
        assert mean_loss(every) == pytest.approx(step.loss, abs=1e-5)
        num_targets = replay.records.of(number)["tokens"] - replay.records.of(number - 1)["tokens"]
        assert sum(loss is not None for loss in every) == num_targets
    assert [step_of(losses.checkpoint(number)) for number in (1, 9)] == [1, 4]
    (tmp_path / "run/checkpoints/step-00000003/__0_0.distcp").write_bytes(b"")
    losses = TokenLosses(replay)
    assert step_of(losses.checkpoint(4)) == 2
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(
        FormatError, match=r"run has no checkpoint: losses are those of a model that was saved, wait for"
    ):
        losses.checkpoint(4)


def every_row(data):
    index = read_index(data.tokens)
    return [("a.parquet", size) for number in range(len(index.shards)) for size in row_sizes(data, number)]


def row_sizes(data, shard):
    return np.diff(open_documents(data.tokens, read_index(data.tokens), shard).astype(np.int64)).tolist()


def test_a_document_is_seen_in_every_epoch_or_is_held_out(runs):
    replay = Replay(runs.directory / "shuffled")
    replay.total_steps = runs.steps["shuffled"]
    trace, fates = Trace(replay), []
    for row, (source, size) in enumerate(every_row(runs.data)):
        found = held_out(replay, source, row)
        is_seen = any(sighting.chunk.epoch == 0 for sighting in trace.sightings(source, row))
        fates.append((is_seen, found.validated > 0))
        assert size == 0 or is_seen or found.validated, row
        assert (found.reserved, found.is_kept_apart) == (0, False)
    assert {(True, False), (False, True)} < set(fates)


def test_units_behind_the_validation_range_are_held_out_but_not_validated_on(runs):
    replay = Replay(runs.directory / "units")
    fates = [held_out(replay, source, row) for row, (source, _) in enumerate(every_row(runs.data))]
    assert sum(fate.validated > 0 for fate in fates) > 0
    assert sum(fate.reserved > 0 for fate in fates) > 0
