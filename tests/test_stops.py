"""A run that is asked to stop, by signals or because its job ends, is saved, and nothing of it is lost."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers import await_that, has_ended, on_ranks, start_cli
from tests.launch_helpers import arguments, events, records, saved_step, start_faulty
from tests.test_resume import family
from tests.train_helpers import plain, random_tokens, recipe, write_tokens
from train.console import Lines
from train.launch import Launch
from train.outcome import REQUEUE, read_state
from train.outlook import Outlook
from train.records import read_metrics
from train.signals import SIGNALS, Signals


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dataset") / "tokens"
    write_tokens(directory, [random_tokens(40_000)], vocab_size=64)
    return directory


CALLS = {"trial": 2, "fetch": 3, "reader": 4, "forward": 5, "optimizer": 4, "agree": 2, "validate": 1, "save": 1}
PLACES = CALLS | {"setup": 1, "resume": 1}
"""And the call there at which the signal comes."""
STOPS = [(place, number % 2, SIGNALS[number % len(SIGNALS)]) for number, place in enumerate(PLACES)]


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


def test_a_launcher_passes_a_signal_on_from_the_first_moment_of_its_ranks_and_more_change_nothing(tokens, tmp_path):
    process = start_cli("train", "run", *arguments(tokens, tmp_path), OMP_NUM_THREADS="1")
    await_that(lambda: len(family(process.pid)) == 3, process)
    while process.poll() is None:  # until it has shut down
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.001)
    _, err = process.communicate()
    assert process.returncode == REQUEUE, err
    assert err == "stopped at step 0, saved (SIGUSR1): run the same command again to continue\n"
    assert read_state(tmp_path / "run") == ("requeue", 0, "SIGUSR1")


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
        assert Launch(tmp_path, 10, 2, [], 3, Lines(Outlook(10)))(signals) == REQUEUE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "stopped at step 0 (SIGUSR1, nothing new to save): run the same" in capsys.readouterr().err
    assert read_state(tmp_path) == ("requeue", 0, "SIGUSR1, nothing new to save")


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
    end_s = time.time() + 45 + 5 * random.Random(seed).random()
    words = ["run", *arguments(tokens, tmp_path, **LONG, recovery__deadline_margin_s=2.0)]
    process = start_cli("train", *words, OMP_NUM_THREADS="1", SLURM_JOB_END_TIME=str(int(end_s)))
    assert_saved(process, tmp_path / "run", "the job ends (SLURM_JOB_END_TIME)")
    assert int(end_s) - 12 < time.time() < int(end_s)
    assert saved_step(tmp_path / "run") > 0
