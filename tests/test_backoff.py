"""Memory that runs out in a step: the step is run again in smaller microbatches, and nothing is learned otherwise.

On one process; as pipelines of two, which go through a table of runs in one start; by FSDP, whose ranks start again.
"""

import json
import re

import pytest
import torch

from shared.storage import read_sealed
from tests.helpers import REPOSITORY, on_ranks, run_cli
from tests.shortages import Fault, running_out
from tests.train_helpers import group_of_one, plain, random_tokens, recipe, write_tokens
from train.findings import MICROBATCH_NAME
from train.memory_errors import RankOutOfMemory
from train.preflight import prepare
from train.records import read_metrics
from train.recovery import StopRequest
from train.request import RunRequest
from train.run import execute

CPU = torch.device("cpu")
BASE = {
    "model__num_hidden_layers": 4,
    "data__global_batch": 8,
    "data__validation_chunks": 8,
    "training__microbatch": 2,
    "training__total_steps": 3,
    "training__validate_every": 1,
    "optimizer__learning_rate": 1e-3,
}
FSDP = {**BASE, "data__global_batch": 32, "data__validation_chunks": 32, "training__microbatch": 16}
PIPELINE = {**BASE, "strategy": "pipeline", "pipeline__split": "computed"}
SCHEDULES = {
    "1f1b": PIPELINE,
    "interleaved-1f1b": {**PIPELINE, "pipeline__schedule": "interleaved-1f1b"},
    "zero-bubble": {**PIPELINE, "pipeline__schedule": "zero-bubble"},
}
BOTH = (0, 1)
FAULTS = [("forward", 1, (0,)), ("backward", 3, BOTH), ("receive", 3, (1,)), ("loss", 2, (1,)), ("weights", 1, (0,))]
MORE_FAULTS = [
    *[("forward", call, ranks) for call, ranks in ((3, (1,)), (2, BOTH))],
    *[("backward", call, ranks) for call, ranks in ((1, (0,)), (2, (1,)))],
    ("receive", 2, (0,)),
    ("weights", 3, BOTH),
]


def name_of(place, call, ranks):
    return f"{place}{call}-{''.join(map(str, ranks))}"


def can_be(schedule, fault):
    """Whether the schedule has the pass that is to fail: only one has one for the weights alone."""
    return fault[0] != "weights" or schedule == "zero-bubble"


def cases(faults):
    pairs = [(schedule, fault) for schedule in SCHEDULES for fault in faults if can_be(schedule, fault)]
    return [pytest.param(schedule, fault, id=f"{name_of(*fault)}-{schedule}") for schedule, fault in pairs]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    directory = tmp_path_factory.mktemp("backoff") / "tokens"
    write_tokens(directory, [random_tokens(1100)], vocab_size=64)
    return directory


def events(run, name):
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def assert_alike(run, undisturbed, rel=1e-6):
    """Every step has seen the same data and learned the same."""
    one, other = read_metrics(run), read_metrics(undisturbed)
    for key in ("step", "tokens", "epoch", "shard", "offset", "data_digest", "lr"):
        assert [record[key] for record in one] == [record[key] for record in other]
    for key in ("loss", "grad_norm", "validation_loss"):
        assert [record[key] for record in one] == pytest.approx([record[key] for record in other], rel=rel)


# pipelines


@pytest.fixture(scope="module")
def pipelines(tokens, tmp_path_factory):
    """What `with_faults` says, and runs that end, begin or are compiled without memory."""
    directory = tmp_path_factory.mktemp("pipelines")
    jobs = with_faults(tokens, directory, FAULTS)
    jobs.append(job(tokens, directory / "fsdp", None, **FSDP))
    at_one = {**SCHEDULES["1f1b"], "training__microbatch": 1}
    jobs.append(job(tokens, directory / "too-small", {"place": "forward", "ranks": (1,)}, **at_one))
    before = {**SCHEDULES["1f1b"], "training__microbatch": 4}
    jobs.append(job(tokens, directory / "before", {"place": "forward", "ranks": (1,), "step": 0, "times": 2}, **before))
    compiled = {**SCHEDULES["1f1b"], "training__compile": True}
    jobs.append(job(tokens, directory / "compile", {"place": "compile", "ranks": (1,), "call": 2}, **compiled))
    return done(jobs, directory)


@pytest.fixture(scope="module")
def more_pipelines(tokens, tmp_path_factory):
    """What `with_faults` says."""
    directory = tmp_path_factory.mktemp("more_pipelines")
    return done(with_faults(tokens, directory, MORE_FAULTS), directory)


def done(jobs, directory):
    """`directory`, with the runs of these jobs in it."""
    path = directory / "jobs.json"
    path.write_text(json.dumps(jobs))
    on_ranks(2, "tests.backoff_worker", path)
    return directory


def with_faults(tokens, directory, all_faults):
    """For each schedule a run without a fault, named plain, and one for each fault."""
    jobs = []
    for schedule, changes in SCHEDULES.items():
        faults = {name_of(*fault): fault for fault in all_faults if can_be(schedule, fault)}
        for name, fault in {"plain": None, **faults}.items():
            told = fault and {"place": fault[0], "call": fault[1], "ranks": fault[2]}
            jobs.append(job(tokens, directory / schedule / name, told, **changes))
    return jobs


def job(tokens, run, fault, **changes):
    return {"config": plain(recipe(**changes)), "tokens": str(tokens), "run": str(run), "fault": fault}


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "fault"), cases(FAULTS))
def test_a_stage_without_memory_drains_and_the_step_is_run_again_in_halves(pipelines, schedule, fault):
    assert_run_again(pipelines, schedule, fault)


@pytest.mark.long
@pytest.mark.parametrize(("schedule", "fault"), cases(MORE_FAULTS))
def test_so_it_does_at_other_places(more_pipelines, schedule, fault):
    assert_run_again(more_pipelines, schedule, fault)


def assert_run_again(pipelines, schedule, fault):
    run = pipelines / schedule / name_of(*fault)
    assert_alike(run, pipelines / schedule / "plain")
    (told,) = events(run, "backoff")
    assert (told["step"], told["from"], told["to"]) == (2, 2, 1)
    assert told["rank"] == fault[2][0]
    phases = {"backward": "backward", "weights": "other", "receive": "other"}
    assert told["phase"] == phases.get(fault[0], "forward")
    assert told["reason"] == f"no memory for {fault[0]}"
    assert read_sealed(run / MICROBATCH_NAME)["at_most"] == 1


def test_without_a_smaller_microbatch_every_rank_says_what_is_needed(pipelines):
    run = pipelines / "too-small"
    wanted = (
        r"rank 1 ran out of memory \(forward: no memory for forward\) with a microbatch of 1, the smallest that can be "
        r"laid out: a rank needs about [\d.e-]+ GiB \(weights [\d.e-]+, gradients [^)]+\): "
        r"use more ranks, a smaller model, a shorter data.sequence_length or "
        r"training.activation_checkpointing full"
    )
    for rank in BOTH:
        assert re.fullmatch(wanted, (run / f"rank{rank}.error").read_text())
    assert events(run, "backoff") == []


def test_a_stage_tells_before_the_first_step_what_does_not_fit(pipelines):
    run = pipelines / "before"
    assert [(told["step"], told["from"], told["to"]) for told in events(run, "backoff")] == [(0, 4, 2), (0, 2, 1)]
    assert_alike(run, pipelines / "1f1b" / "plain")
    (told,) = events(run, "microbatch")
    assert (told["chosen"], told["reason"]) == (1, "rank 1 ran out of memory (forward: no memory for forward)")


def test_a_compiler_without_memory_on_one_stage_is_given_less_to_compile(pipelines):
    run = pipelines / "compile"
    (told,) = events(run, "backoff")
    assert (told["rank"], told["phase"], told["to"]) == (1, "compile", 1)
    assert events(run, "eager") == []
    assert_alike(run, pipelines / "1f1b" / "plain")


# one process


def trained(tokens, run, fault=None, **changes):
    """The events of a run on this process."""
    prepared = prepare(RunRequest(tokens, run, recipe(**{**BASE, **changes})), 1)
    with group_of_one(), running_out(fault), pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.run.measured_peak_flops", lambda device, dtype: 1e9)
        execute(prepared, CPU, StopRequest())


@pytest.fixture(scope="module")
def undisturbed(tokens, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    trained(tokens, run)
    return run


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("forward", call=5), (2, "forward", 2, 1)),
        (Fault("backward", call=6), (2, "backward", 2, 1)),
        (Fault("loss", call=4), (2, "forward", 2, 1)),
        (Fault("loss", call=6), (2, "forward", 2, 1)),  # of the validation after the step
        (Fault("compile", call=5), (2, "compile", 2, 1)),
        (Fault("forward", step=0), (0, "forward", 2, 1)),
    ],
    ids=lambda told: f"{told.place}-{told.step}-{told.call}" if isinstance(told, Fault) else "",
)
def test_one_process_runs_the_step_again_in_halves(tokens, undisturbed, tmp_path, fault, expected):
    trained(tokens, tmp_path, fault, training__compile=fault.place == "compile")
    (told,) = events(tmp_path, "backoff")
    assert (told["step"], told["phase"], told["from"], told["to"]) == expected
    assert events(tmp_path, "eager") == []
    assert_alike(tmp_path, undisturbed)


def test_a_weight_that_was_moved_when_memory_ran_out_is_taken_from_the_checkpoint(tokens, undisturbed, tmp_path):
    with pytest.raises(RankOutOfMemory, match=r"rank 0 ran out of memory \(other: no memory for optimizer\): all"):
        trained(tokens, tmp_path, Fault("optimizer"), checkpoint__every=1)
    assert read_sealed(tmp_path / MICROBATCH_NAME)["at_most"] == 1
    trained(tokens, tmp_path, checkpoint__every=1)
    assert [(told["step"], told["to"]) for told in events(tmp_path, "backoff")] == [(2, 1)]
    assert events(tmp_path, "microbatch")[-1]["chosen"] == 1
    assert_alike(tmp_path, undisturbed)


def test_a_compiler_without_memory_for_the_smallest_microbatch_is_not_asked_again(tokens, undisturbed, tmp_path):
    compiled = {"training__compile": True, "training__microbatch": 1}
    trained(tokens, tmp_path, Fault("compile"), training__total_steps=3, **compiled)
    (told,) = events(tmp_path, "eager")
    assert told["reason"] == "rank 0 ran out of memory (compile: no memory for compile)"
    assert [record["compiled"] for record in read_metrics(tmp_path)] == [1.0, 0.0, 0.0]
    assert_alike(tmp_path, undisturbed)
    assert read_sealed(tmp_path / MICROBATCH_NAME)["is_eager"]


def test_another_error_is_not_taken_for_a_lack_of_memory(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(Fault, "check", lambda fault: 1 // (fault.now != fault.step))
    with pytest.raises(ZeroDivisionError):
        trained(tokens, tmp_path, Fault("forward"))
    assert events(tmp_path, "backoff") == []


# FSDP, whose ranks start again


CHAIN = {
    "short": [
        {"place": "forward", "step": 0, "ranks": BOTH},
        {"place": "backward", "step": 2, "ranks": (1,)},
        {"place": "optimizer", "step": 3, "ranks": (0,)},
    ],
    "long": [
        {"place": "compile", "step": 1, "ranks": (0,)},
        {"place": "forward", "step": 1, "ranks": (1,), "call": 6},
        {"place": "loss", "step": 2, "ranks": (0,)},
        {"place": "backward", "step": 3, "ranks": BOTH, "call": 9},
    ],
}
"""What happens in the first start of all ranks, in the second, ..."""


def write_recipe(path, config):
    tables = {name: table for name, table in plain(config).items() if isinstance(table, dict)}
    lines = [f"strategy = {json.dumps(config.strategy)}"]
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items() if value is not None)]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("chain", ["short", pytest.param("long", marks=pytest.mark.long)])
def test_sharded_ranks_start_again_from_the_checkpoint_with_half_the_microbatch(tokens, pipelines, tmp_path, chain):
    (tmp_path / "sitecustomize.py").write_text("from tests.shortages import begin\nbegin()\n")
    config = recipe(**FSDP, checkpoint__every=1, training__compile=chain == "long")
    arguments = [tokens, tmp_path / "run", "--recipe", write_recipe(tmp_path / "recipe.toml", config)]
    faults = [fault | {"at_start": start} for start, fault in enumerate(CHAIN[chain])]
    completed = run_cli(
        "torch.distributed.run",
        *("--standalone", "--nproc-per-node=2", f"--max-restarts={len(faults)}", "-m", "train", "run", *arguments),
        PYTHONPATH=f"{tmp_path}:{REPOSITORY}",
        OMP_NUM_THREADS="1",
        SHORTAGES=json.dumps(faults),
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr.count(": all ranks start again with less at a time\n") >= len(faults)
    halves = [16, 8, 4, 2, 1]
    told = {(event["from"], event["to"], event["step"]) for event in events(tmp_path / "run", "backoff")}
    assert told == {(*halves[start : start + 2], fault["step"]) for start, fault in enumerate(faults)}
    saved = [max(fault["step"] - 1, 0) for fault in faults]
    is_probed = faults[0]["step"] == 0
    assert [event["step"] for event in events(tmp_path / "run", "start")] == ([] if is_probed else [0]) + saved
    assert_alike(tmp_path / "run", pipelines / "fsdp")
