"""`trace` against what the readers of real runs wrote down, and against itself in the other direction."""

import json
import random
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import train.run
from preprocess.config import PackSettings
from preprocess.pack import pack
from shared.errors import ConfigError, FormatError
from shared.format import read_index
from tests.helpers import on_ranks
from tests.recording import Texts, recorded, recording
from tests.train_helpers import group_of_one, plain, recipe, unasked, write_documents
from train.preflight import RunRequest, prepare
from train.replay import Replay
from train.run import execute
from train.single import SingleStrategy
from train.trace import Trace

CPU = torch.device("cpu")
ALL = {"data__validation_chunks": 8, "training__microbatch": 1, "checkpoint__every": None}
UNITS = {"data__shuffle_length": 32}
FSDP, PIPELINE = {"strategy": "fsdp"}, {"strategy": "pipeline"}
LONGER = {"data__sequence_length": 32, "data__validation_chunks": 4, "data__global_batch": 4}
CASES = {  # options of the whole run, then those of each start on two ranks
    "natural": ({"data__order": "natural"}, [PIPELINE, FSDP]),
    "shuffled": ({}, [FSDP | {"data__global_batch": 8}, PIPELINE | {"training__microbatch": 2}]),
    "units": (UNITS, [PIPELINE, FSDP | LONGER]),
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


def traced(run, step):
    """As `recorded` has it: for each rank its sequences in order, with the documents in them and the microbatch."""
    by_rank = {}
    for chunk in Trace(Replay(run)).step(step).chunks:
        parts = [(part.row, part.start, part.stop) for part in chunk.documents]
        for number in chunk.ranks:
            by_rank.setdefault(number, []).append((merged(parts), chunk.microbatch))
    return by_rank


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
