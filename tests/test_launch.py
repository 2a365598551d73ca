"""A run from its first process to its exit code: stopped, killed, robbed, started again. All by real processes."""

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers import await_that, has_ended, on_ranks, run_cli, start_cli
from tests.test_resume import family
from tests.test_run import contents
from tests.test_watchdog import recipe_file
from tests.train_helpers import plain, random_tokens, recipe, write_tokens
from train.checkpoint import newest_step
from train.launch import Launch
from train.metrics import read_metrics
from train.outcome import REQUEUE, nothing_to_do, read_state, write_state
from train.signals import SIGNALS, Signals

KEPT = ("step", "loss", "grad_norm", "tokens", "epoch", "shard", "offset", "data_digest", "validation_loss")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dataset") / "tokens"
    write_tokens(directory, [random_tokens(40_000)], vocab_size=64)
    return directory


def events(run: Path, name: str) -> list[dict]:
    path = run / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


def saved_step(run: Path) -> int:
    return newest_step(run / "checkpoints")


def records(run: Path) -> list[list]:
    return [[record.get(key) for key in KEPT] for record in read_metrics(run)]


def arguments(tokens: Path, directory: Path, **changes) -> list[object]:
    """Of `train run` on two ranks, in `directory`/run."""
    return [tokens, directory / "run", "--recipe", recipe_file(directory, **changes), "--nproc", 2]


def start_faulty(fault: str, tokens: Path, directory: Path, *options: object, **changes) -> subprocess.Popen[str]:
    """The launcher of a run with a fault in a rank."""
    words = [*fault.split(), *arguments(tokens, directory, **changes), *options]
    return start_cli("tests.faulty_launch", *words, OMP_NUM_THREADS="1")


def run_faulty(fault: str, tokens: Path, directory: Path, *options: object, **changes) -> tuple[int, str, str]:
    process = start_faulty(fault, tokens, directory, *options, **changes)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


# restarts


def test_ranks_are_started_again_after_a_kill_as_long_as_each_start_gets_further(tokens, tmp_path):
    changes = {"training__total_steps": 8, "checkpoint__every": 2}
    code, out, err = run_faulty("forward kill! 1 4", tokens, tmp_path, "--max-restarts", 1, **changes)
    assert code == 0, err
    run = tmp_path / "run"
    restarts = events(run, "restart")
    assert [(event["rank"], event["reason"], event["attempt"]) for event in restarts] == [
        (1, "rank 1 was ended by SIGKILL", 1)
    ] * len(restarts)
    assert [event["step"] for event in restarts] == [2, 4, 6]
    assert [(event["step"], event.get("restarts")) for event in events(run, "start")] == [
        *((0, None), (2, 1), (4, 2), (6, 3))
    ]
    assert out.count("restart: rank 1, reason rank 1 was ended by SIGKILL, step 2, attempt 1\n") == 1
    assert [record["step"] for record in read_metrics(run)] == [*range(1, 9)]
    assert read_state(run) == ("finished", 8, "all steps are done")


def test_a_run_that_gets_nowhere_is_given_up(tokens, tmp_path):
    code, _, err = run_faulty("forward memory! 0 1", tokens, tmp_path, "--max-restarts", 1)
    reason = "rank 0 ended with exit code 71 (out of memory), 1 restarts without a new checkpoint"
    assert code == 1
    assert err.endswith(
        f"error: {reason} (the newest is of step 0): see above for its message, then run the same command again\n"
    )
    (restart,) = events(tmp_path / "run", "restart")
    assert (restart["rank"], restart["step"], restart["attempt"]) == (0, 0, 1)
    assert read_state(tmp_path / "run") == ("failed", 0, reason)


def test_bare_torchrun_brings_a_run_back_whose_rank_was_killed(tokens, tmp_path):
    changes = {"training__total_steps": 8, "checkpoint__every": 2}
    command = [*("--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.1"), "-m", "tests.faulty_rank"]
    command += ["optimizer", "kill", "0", "4", *map(str, arguments(tokens, tmp_path, **changes))]
    done = run_cli("torch.distributed.run", *command, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert [(event["step"], event.get("restarts")) for event in events(run, "start")] == [(0, None), (2, 1)]
    assert [record["step"] for record in read_metrics(run)] == [*range(1, 9)]
    assert read_state(run) == ("finished", 8, "all steps are done")


def test_restarts_that_cannot_be_are_one_line(tokens, tmp_path):
    ended = run_cli("train", "run", *arguments(tokens, tmp_path), "--max-restarts", -1)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("error: max-restarts -1 is too small")
    assert not (tmp_path / "run").exists()


# signals

CALLS = {"trial": 2, "fetch": 3, "reader": 4, "forward": 5, "optimizer": 4, "agree": 2, "validate": 2, "save": 1}
PLACES = CALLS | {"setup": 1, "resume": 1}
"""And the call there at which the signal comes."""
STOPS = [
    (place, rank, SIGNALS[(number + rank) % len(SIGNALS)]) for number, place in enumerate(PLACES) for rank in (0, 1)
]


@pytest.fixture(scope="module")
def stopped(tokens, tmp_path_factory):
    """A run for each of STOPS, and one that nobody stopped."""
    directory = tmp_path_factory.mktemp("stopped")
    write_tokens(directory / "tokens", [random_tokens(400)], vocab_size=64)
    jobs = []
    for place, rank, number in [*STOPS, ("setup", 2, signal.SIGTERM)]:
        config = recipe(
            training__total_steps=7,
            training__validate_every=3,
            training__microbatch=None if place == "trial" else 2,
            data__validation_chunks=8,
            checkpoint__every=2,
        )
        job = {"place": place, "rank": rank, "number": number, "call": PLACES[place], "config": plain(config)}
        jobs.append({**job, "tokens": str(directory / "tokens"), "run": str(directory / f"{place}-{rank}")})
    (directory / "jobs.json").write_text(json.dumps(jobs))
    on_ranks(2, "tests.stopping_worker", directory / "jobs.json")
    return directory


@pytest.mark.parametrize(("place", "rank", "number"), STOPS, ids=[f"{place}-{rank}" for place, rank, _ in STOPS])
def test_a_signal_to_any_rank_at_any_place_ends_all_ranks_saved_and_loses_nothing(stopped, place, rank, number):
    run = stopped / f"{place}-{rank}"
    found = json.loads((stopped / f"{run.name}.json").read_text())
    step = found["steps"][0]
    assert found["steps"] == [step, step]
    assert found["state"] == ["requeue", step, number.name]
    assert 0 <= step < 7
    if place != "reader":  # reads ahead
        assert (step > 0) == (place not in ("trial", "setup", "resume"))
    assert [event["step"] for event in events(run, "start")] == [0, step]
    assert [event["reason"] for event in events(run, "stopped")] == [number.name]
    assert read_state(run) == ("finished", 7, "all steps are done")
    undisturbed = records(stopped / "setup-2")
    if place == "trial":  # with a microbatch that is as fast
        assert [record[3:8] for record in records(run)] == [record[3:8] for record in undisturbed]
    else:
        assert records(run) == undisturbed


@pytest.mark.parametrize("number", SIGNALS)
def test_a_launcher_passes_a_signal_on_from_the_first_moment_of_its_ranks(tokens, tmp_path, number):
    process = start_cli("train", "run", *arguments(tokens, tmp_path), OMP_NUM_THREADS="1")
    await_that(lambda: len(family(process.pid)) == 3, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    assert process.returncode == REQUEUE, err
    assert err == f"stopped at step 0, saved ({number.name}): run the same command again to continue\n"
    assert read_state(tmp_path / "run") == ("requeue", 0, number.name)


def test_ranks_whose_launcher_is_killed_save_and_end(tokens, tmp_path):
    run = tmp_path / "run"
    words = arguments(tokens, tmp_path, training__total_steps=100_000, checkpoint__every=10**9)
    process = start_cli("train", "run", *words, OMP_NUM_THREADS="1")
    await_that((run / "metrics.jsonl").exists, process)
    ranks = family(process.pid) - {process.pid}
    process.kill()
    end_s = time.monotonic() + 60
    while not all(map(has_ended, ranks)):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    process.communicate()
    state, step, reason = read_state(run)
    assert (state, reason) == ("requeue", "its launcher is gone")
    assert step == saved_step(run) == read_metrics(run)[-1]["step"] > 0


def test_a_signal_that_comes_when_no_rank_is_there_is_not_lost(tmp_path, capsys):
    (tmp_path / "run.json").write_text("{}")
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        signals = Signals()
        signal.raise_signal(signal.SIGUSR1)
        assert Launch(tmp_path, 10, 2, [], 3)(signals) == REQUEUE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "stopped at step 0 (SIGUSR1, nothing new to save): run the same" in capsys.readouterr().err
    assert read_state(tmp_path) == ("requeue", 0, "SIGUSR1, nothing new to save")


# states


@pytest.mark.parametrize(
    ("state", "step", "reason", "last_step", "wanted"),
    [
        ("finished", 5, "all steps are done", 5, "(all steps are done): nothing to do; give a later training.total_st"),
        ("finished", 5, "--stop-step", 5, "(--stop-step): nothing to do; give a later --stop-step to go on"),
        ("finished", 5, "--stop-step", 3, "(--stop-step): nothing to do; give a later --stop-step to go on"),
        ("finished", 5, "--stop-step", 6, None),
        ("requeue", 5, "SIGTERM", 5, None),
        ("running", 5, "", 5, None),
        (None, 5, "", 5, None),
    ],
)
def test_a_finished_run_is_not_trained_further_by_accident(tmp_path, state, step, reason, last_step, wanted):
    if state is not None:
        write_state(tmp_path, state, step, reason)
    said = nothing_to_do(tmp_path, step, last_step)
    assert (said is None) == (wanted is None)
    if wanted is not None:
        assert said.startswith(f"{tmp_path} finished at step 5 {wanted}")


def test_a_duration_as_deadline_is_refused_where_torchrun_starts_again(tokens, tmp_path):
    words = ["run", *arguments(tokens, tmp_path), "--deadline", "8:00:00"]
    ended = run_cli("train", *words, RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    assert ended.returncode == 2
    assert "error: deadline 8:00:00 would begin anew when torchrun restarts: give it a time, as that" in ended.stderr


# theft


def test_who_was_robbed_of_a_run_ends_and_leaves_the_thiefs_files_alone(tokens, tmp_path):
    run = tmp_path / "run"
    words = arguments(tokens, tmp_path, training__total_steps=100_000, checkpoint__every=10**9)
    robbed = start_cli("train", "run", *words, OMP_NUM_THREADS="1")
    await_that((run / "metrics.jsonl").exists, robbed)
    doomed = family(robbed.pid)
    for pid in doomed:
        os.kill(pid, signal.SIGSTOP)
    try:
        (run / "state.json.0a1b2c3d.tmp").write_text("of the robbed")
        refused = run_cli("train", "run", *words, OMP_NUM_THREADS="1")
        assert refused.returncode == 2
        assert f"{run} is in use by another run (process " in refused.stderr
        thief = run_cli("train", "run", *words, "--steal", "--stop-step", 3, OMP_NUM_THREADS="1")
        assert (thief.returncode, thief.stderr) == (0, "")
        assert not (run / "state.json.0a1b2c3d.tmp").exists()
        before = contents(run)
    finally:
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    _, err = robbed.communicate(timeout=100)
    assert robbed.returncode == 2, err
    assert f"error: {run} was taken over: this process writes nothing there any more" in err
    assert contents(run) == before
    assert read_state(run) == ("finished", 3, "--stop-step")


# the long form: stops of real runs, each through its launcher

RUN_PLACES = ("setup", "resume", "fetch", "reader", "forward", "optimizer", "agree", "validate", "save")
TO_A_RANK = [(place, rank, SIGNALS[(n + rank) % 3].name) for n, place in enumerate(RUN_PLACES) for rank in (0, 1)]
TO_THE_LAUNCHER = [(number.name, seed) for number in SIGNALS for seed in range(4)]
DEADLINES = [*range(10)]
LONG = {"training__total_steps": 100_000, "training__validate_every": 7, "checkpoint__every": 5}
IN_TIME_S = 15.0
"""From a signal to the end of all processes, on a busy machine; a step and a save take less than 1."""


def assert_saved(process: subprocess.Popen[str], run: Path, reason: str) -> None:
    """It has ended well, and all that it did is in a checkpoint."""
    _, err = process.communicate(timeout=100)
    assert process.returncode == REQUEUE, err
    state, step, why = read_state(run)
    assert (state, why) == ("requeue", reason)
    assert step == saved_step(run)
    assert step == (read_metrics(run)[-1]["step"] if (run / "metrics.jsonl").exists() else 0)


@pytest.mark.long
@pytest.mark.parametrize(("place", "rank", "name"), TO_A_RANK)
def test_a_run_that_one_rank_is_asked_to_stop_is_saved(tokens, tmp_path, place, rank, name):
    step = 0 if place in ("setup", "resume") else 10
    assert_saved(start_faulty(f"{place} {name} {rank} {step}", tokens, tmp_path, **LONG), tmp_path / "run", name)


@pytest.mark.long
@pytest.mark.parametrize(("name", "seed"), TO_THE_LAUNCHER)
def test_a_run_whose_launcher_is_asked_to_stop_at_any_moment_is_saved_in_time(tokens, tmp_path, name, seed):
    process = start_faulty("forward none 0 0", tokens, tmp_path, **LONG)
    await_that(lambda: len(family(process.pid)) == 3, process)
    time.sleep(12 * random.Random(f"{name}{seed}").random())
    began = time.monotonic()
    process.send_signal(signal.Signals[name])
    if seed % 2:
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)  # a second one changes nothing
    assert_saved(process, tmp_path / "run", name)
    assert time.monotonic() - began < IN_TIME_S


@pytest.mark.long
@pytest.mark.parametrize("seed", DEADLINES)
def test_a_run_is_saved_before_its_job_ends(tokens, tmp_path, seed):
    end_s = time.time() + 35 + 5 * random.Random(seed).random()
    words = ["run", *arguments(tokens, tmp_path, **LONG, recovery__deadline_margin_s=2.0)]
    process = start_cli("train", *words, OMP_NUM_THREADS="1", SLURM_JOB_END_TIME=str(int(end_s)))
    assert_saved(process, tmp_path / "run", "the job ends (SLURM_JOB_END_TIME)")
    assert int(end_s) - 12 < time.time() < int(end_s)
    assert saved_step(tmp_path / "run") > 0
