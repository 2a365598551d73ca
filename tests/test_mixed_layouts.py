"""Runs of several datasets, one stage after the other, on two real ranks against one process: what they read and learn.

All runs of the two ranks are carried out in one start of them.
"""

import json
from types import SimpleNamespace

import pytest
import torch

import train.run
from tests.helpers import on_ranks
from tests.recording import Texts, recorded, recording
from tests.test_backoff import events
from tests.test_trace import by_rank, merged, shards_of
from tests.train_helpers import plain, recipe, unasked, write_documents
from train.checkpoint_directory import step_of
from train.loss_colours import mean_loss
from train.preflight import prepare
from train.records import read_metrics
from train.replay import Replay
from train.request import RunRequest
from train.run import execute
from train.token_losses import TokenLosses
from train.trace import Trace

CPU = torch.device("cpu")
NAMES = ("web", "code")


def mixture(web, code):
    return [{"name": "web", "weight": web}, {"name": "code", "weight": code}]


BASE = {
    "model__num_hidden_layers": 4,
    "data__sources": mixture(0.75, 0.25),
    "data__shuffle_length": 32,
    "data__global_batch": 8,
    "data__validation_chunks": 8,
    "training__total_steps": 8,
    "training__microbatch": 2,
    "optimizer__learning_rate": 1e-3,
}
ANNEAL = {
    **BASE,
    "data__sources": mixture(0.4, 0.6),
    "data__sequence_length": 32,
    "data__global_batch": 4,
    "data__validation_chunks": 4,
    "training__total_steps": 4,
    "training__microbatch": 1,
    "optimizer__schedule": "wsd",
    "optimizer__cooldown_fraction": 1.0,
}
PIPELINE = {"strategy": "pipeline", "pipeline__split": "computed"}
LAYOUTS = {
    "fsdp": {},
    "1f1b": PIPELINE,
    "interleaved-1f1b": PIPELINE | {"pipeline__schedule": "interleaved-1f1b"},
    "zero-bubble": PIPELINE | {"pipeline__schedule": "zero-bubble"},
}
SHORTAGES = {
    "1f1b": {"place": "loss", "call": 3, "ranks": [1]},
    "interleaved-1f1b": {"place": "forward", "call": 3, "ranks": [0]},
    "zero-bubble": {"place": "backward", "call": 2, "ranks": [0, 1]},
}
STAGES = ("kept", "reset")
QUICK = [("fsdp", "grown"), ("fsdp", "kept"), ("1f1b", "short"), ("1f1b", "reset")]
EVERYTHING = [(name, how) for name in LAYOUTS for how in ("whole", "grown", "shrunk", *STAGES)]
EVERYTHING += [(name, "short") for name in SHORTAGES]  # sharded ranks start again: tests/test_backoff.py
SAVED = 4
"""The step at which a run is handed over from one process to two, or back."""


def write_sources(tokens):
    """Two datasets of ids that are all different."""
    shards = {"web": shards_of(3), "code": shards_of(1, seed=1)}
    sizes = {name: sum(size - 1 for of_shard in found for size in of_shard if size) for name, found in shards.items()}
    end, first = sum(sizes.values()), 0
    for name, found in shards.items():
        write_documents(tokens / name, found, vocab_size=end + 1, end=end, first=first)
        first += sizes[name]
    rows = [sum(map(len, found)) for found in shards.values()]
    return SimpleNamespace(
        tokens=tokens, texts=Texts([*shards["web"], *shards["code"]], end), end=end, web_rows=rows[0]
    )


def config(data, **changes):
    return recipe(**{**BASE, "model__vocab_size": data.end + 1, **changes})


def executed(data, run, stop_step=None, *, begin_from=None, reset_optimizer=False, **changes):
    """A run of this process alone, which writes down what it reads."""
    request = RunRequest(
        data.tokens, run, config(data, **changes), stop_step, begin_from=begin_from, reset_optimizer=reset_optimizer
    )
    with pytest.MonkeyPatch.context() as patch, recording(records_of(run)):
        patch.setattr(train.run, "measured_peak_flops", lambda device, dtype: 1e9)
        execute(prepare(request, 1), CPU, unasked())


def records_of(run):
    return run.with_name(f"{run.name} records")


def job(data, run, stop_step, fault, begin_from=None, reset_optimizer=False, **changes):
    told = {"tokens": str(data.tokens), "run": str(run), "records": str(records_of(run)), "stop_step": stop_step}
    told |= {"config": plain(config(data, **changes)), "fault": fault}
    return told | ({"begin_from": str(begin_from), "reset_optimizer": reset_optimizer} if begin_from else {})


def carried_out(directory, cases):
    """Runs by one process, and those of `cases` by two, of which some were begun or are ended by one."""
    data, jobs = write_sources(directory / "tokens"), []
    executed(data, directory / "alone")
    for how in STAGES:
        executed(data, directory / f"alone-{how}", **begun(directory, how), **ANNEAL)
    for name, how in cases:
        run, changes, stage = directory / f"{name}-{how}", LAYOUTS[name], {}
        if how == "grown":
            executed(data, run, SAVED)
        if how in STAGES:
            changes, stage = ANNEAL | changes, begun(directory, how)
        fault = SHORTAGES[name] if how == "short" else None
        jobs.append(job(data, run, SAVED if how == "shrunk" else None, fault, **stage, **changes))
    (directory / "jobs.json").write_text(json.dumps(jobs))
    on_ranks(2, "tests.recording_worker", directory / "jobs.json")
    for name, how in cases:
        if how == "shrunk":
            executed(data, directory / f"{name}-{how}")
    return SimpleNamespace(directory=directory, data=data)


def begun(directory, how):
    return {"begin_from": directory / "alone", "reset_optimizer": how == "reset"}


@pytest.fixture(scope="module")
def quick(process_group, tmp_path_factory):
    return carried_out(tmp_path_factory.mktemp("quick"), QUICK)


@pytest.fixture(scope="module")
def everything(process_group, tmp_path_factory):
    return carried_out(tmp_path_factory.mktemp("everything"), EVERYTHING)


def each_case(test):
    """`made` has the run of each case; those that are not quick are long."""
    cases = [("quick", *case) for case in QUICK]
    cases += [pytest.param("everything", *case, marks=pytest.mark.long) for case in EVERYTHING if case not in QUICK]
    return pytest.mark.parametrize(("runs", "name", "how"), cases)(test)


def assert_alike(run, alone):
    """Every step has read the same, and learned the same of every source."""
    one, other = read_metrics(run), read_metrics(alone)
    losses = ["loss", "grad_norm", *(f"loss_{name}" for name in NAMES)]
    for key in ("step", "tokens", "epoch", "shard", "offset", "data_digest", "lr"):
        assert [record[key] for record in one] == [record[key] for record in other], key
    for key in losses:
        assert [record[key] for record in one] == pytest.approx([record[key] for record in other], rel=1e-5), key
    for key in ("validation_loss", *(f"validation_loss_{name}" for name in NAMES)):
        assert one[-1][key] == pytest.approx(other[-1][key], rel=1e-5), key


@pytest.mark.slow
@each_case
def test_two_ranks_read_and_learn_of_every_source_what_one_does(request, runs, name, how):
    """Also after a change of the layout, when memory runs out, and in the next stage."""
    directory = request.getfixturevalue(runs).directory
    run = directory / f"{name}-{how}"
    assert_alike(run, directory / (f"alone-{how}" if how in STAGES else "alone"))
    assert len(events(run, "backoff")) == (how == "short")


@pytest.mark.slow
def test_a_stage_with_the_optimizer_reset_learns_otherwise_from_its_second_step_on(quick):
    kept, reset = (read_metrics(quick.directory / f"alone-{how}") for how in STAGES)
    assert kept[0]["loss"] == reset[0]["loss"]
    assert kept[1]["loss"] != reset[1]["loss"]


@pytest.mark.slow
@each_case
def test_trace_tells_of_every_source_what_the_readers_wrote_down(request, runs, name, how):
    made = request.getfixturevalue(runs)
    run, data = made.directory / f"{name}-{how}", made.data
    trace, records = Trace(Replay(run)), recorded(records_of(run))
    assert len(records) == (4 if how in STAGES else 8)
    for step, of_rank in records.items():
        chunks = trace.step(step).chunks
        found = by_rank([chunk_over_all(chunk, data.web_rows) for chunk in chunks])
        assert found.keys() == of_rank.keys()
        for number, sequences in of_rank.items():
            wanted = [merged(data.texts.parts(s["inputs"], s["targets"])) for s in sequences]
            assert [documents for documents, _ in found[number]] == wanted, (step, number)


def chunk_over_all(chunk, web_rows):
    """With rows counted on over both sources, as in the order of their ids."""
    parts = [
        SimpleNamespace(row=p.row + (web_rows if p.source.startswith("code/") else 0), start=p.start, stop=p.stop)
        for p in chunk.documents
    ]
    return SimpleNamespace(documents=parts, ranks=chunk.ranks, microbatch=chunk.microbatch)


@pytest.mark.slow
def test_the_losses_that_trace_tells_of_each_source_are_those_that_were_recorded(quick, tmp_path):
    run = tmp_path / "run"
    executed(quick.data, run, 3, checkpoint__every=1, checkpoint__keep=9)
    replay = Replay(run)
    losses = TokenLosses(replay)
    step, record = Trace(replay).step(3), read_metrics(run)[2]
    path, found = losses.of(step)
    assert step_of(path) == 2
    for name in NAMES:
        every = [
            loss
            for chunk, of_chunk in zip(step.chunks, found, strict=True)
            for part, of_part in zip(chunk.documents, of_chunk.parts, strict=True)
            for loss in of_part
            if part.source.startswith(f"{name}/")
        ]
        assert mean_loss(every) == pytest.approx(record[f"loss_{name}"], abs=1e-5)
