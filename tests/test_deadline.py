"""When a run stops so that it is saved before its job ends."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
import torch

from shared.errors import ConfigError, UserError
from tests.train_helpers import group_of_one, random_tokens, recipe, unasked, write_tokens
from train.deadline import KEPT_STEPS, Deadline, Pace, guessed_save_s
from train.outcome import read_state
from train.preflight import prepare
from train.request import RunRequest
from train.run import execute
from train.signals import SIGNALS

CPU = torch.device("cpu")


def pace(steps: list[float], saves: list[float]) -> Pace:
    told = Pace(guessed_save_s=50.0)
    for step_s in steps:
        told.stepped(step_s)
    for save_s in saves:
        told.saved(save_s)
    return told


@pytest.mark.parametrize(
    ("steps", "saves", "needed_s"),
    [
        ([], [], 105.0),  # nothing known: two guessed saves and the margin
        ([60.0], [], 165.0),  # the first step, in which blocks are compiled, is all there is
        ([60.0, 1.0], [], 106.0),
        ([60.0, 1.0], [3.0], 12.0),
        ([60.0, 1.0], [3.0, 7.0, 2.0], 20.0),  # the longest save
        ([60.0, *[1.0] * 19, 9.0], [0.0], 6.0),  # one of twenty is not the pace
        ([60.0, *[1.0] * 18, 9.0, 9.0], [0.0], 14.0),  # two are
        ([60.0, *[9.0] * 300, *[1.0] * KEPT_STEPS], [0.0], 6.0),  # long ago
    ],
)
def test_a_step_two_saves_and_the_margin_are_kept_before_the_end(steps, saves, needed_s):
    assert pace(steps, saves).needed_s(5.0) == needed_s
    deadline = Deadline(1000.0, 5.0, "--deadline")
    assert not deadline.is_last_moment(1000.0 - needed_s, pace(steps, saves))
    assert deadline.is_last_moment(1000.0 - needed_s + 0.01, pace(steps, saves))


@pytest.mark.parametrize("seed", range(20))
def test_a_run_whose_steps_and_saves_stay_within_what_they_took_ends_in_time(seed):
    """The loop on a clock of its own: whatever times are drawn, it is saved before the end, and not long before."""
    draw = torch.Generator().manual_seed(seed)

    def drawn(least: float, most: float) -> float:
        return least + (most - least) * torch.rand((), generator=draw).item()

    step_s, save_s = drawn(0.1, 30.0), drawn(1.0, 200.0)
    deadline, told, now_s, steps = Deadline(20_000.0, 30.0, "--deadline"), Pace(guessed_save_s(12 * 10**9)), 0.0, 0
    while not deadline.is_last_moment(now_s, told):
        took_s = step_s * drawn(0.9, 1.1)
        now_s, steps = now_s + took_s, steps + 1
        told.stepped(took_s)
        if steps % 100 == 0:
            took_s = save_s * drawn(0.8, 1.0)
            now_s += took_s
            told.saved(took_s)
    now_s += save_s  # the last save
    assert now_s < deadline.end_s
    most_unused_s = 2 * (told.save_s or told.guessed_save_s) + 30.0 + 1.2 * step_s
    assert deadline.end_s - now_s < most_unused_s


# a run in this process


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """A dataset, in a process in which a run has been, so that the next is quick to start."""
    directory = tmp_path_factory.mktemp("data")
    write_tokens(directory / "tokens", [random_tokens(4000)], vocab_size=64)
    with group_of_one():
        prepared = prepare(RunRequest(directory / "tokens", directory / "run", recipe()), 1)
        execute(prepared, CPU, unasked())
        yield directory / "tokens"


def execute_until(tokens, run, left_s, **changes):
    """Where a run of many steps is that ends because its job does, and its events."""
    end = datetime.now(UTC) + timedelta(seconds=left_s)
    config = recipe(training__total_steps=1_000_000, **changes)
    prepared = prepare(RunRequest(tokens, run, config, deadline=end.isoformat()), 1)
    progress = execute(prepared, CPU, unasked())
    return progress, [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def test_a_run_ends_saved_before_its_deadline_by_the_margin_of_its_recipe(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr("train.lifecycle.guessed_save_s", lambda _: 1.0)
    for margin_s in (7.0, 2.0):
        run, began = tmp_path / f"run-{margin_s}", time.monotonic()
        progress, events = execute_until(tokens, run, 14.0, recovery__deadline_margin_s=margin_s, checkpoint__every=5)
        left_s = 14.0 - (time.monotonic() - began)
        assert margin_s - 1.0 < left_s < margin_s + 3.0
        assert progress.step > 0
        assert events[1]["event"] == "deadline"
        assert events[-1]["reason"] == "the job ends (--deadline)"
        assert read_state(run) == ("requeue", progress.step, "the job ends (--deadline)")
        assert (run / "checkpoints" / f"step-{progress.step:08d}" / "MANIFEST.json").is_file()


def test_a_run_that_could_not_save_a_step_before_its_job_ends_is_refused(tokens, tmp_path):
    message = (
        r"^the job ends in \d+ s \(--deadline\), two saves and recovery.deadline_margin_s take 50 s: ask for more time$"
    )
    with pytest.raises(UserError, match=message):
        execute_until(tokens, tmp_path / "run", 40.0)
    assert read_state(tmp_path / "run")[:2] == ("failed", 0)


def test_ranks_that_were_started_again_just_before_the_end_stop_at_once(tokens, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    progress, events = execute_until(tokens, tmp_path / "run", 40.0)
    assert progress.step == 0
    assert events[0]["restarts"] == 1
    assert read_state(tmp_path / "run")[:2] == ("requeue", 0)


def test_a_deadline_that_is_none_makes_no_run(tokens, tmp_path):
    with pytest.raises(ConfigError, match=r"^deadline 'noon' is not a time: 2026-11-30T18:00:00 or hours:minutes:sec"):
        prepare(RunRequest(tokens, tmp_path / "run", recipe(), deadline="noon"), 1)


def test_a_batch_system_that_cannot_be_asked_is_a_warning_and_no_end(tokens, tmp_path, monkeypatch):
    monkeypatch.setenv("PBS_JOBID", "12.server")
    monkeypatch.setenv("PATH", str(tmp_path))
    execute(prepare(RunRequest(tokens, tmp_path / "run", recipe()), 1), CPU, unasked())
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (warning,) = [event["problem"] for event in events if event["event"] == "warning"]
    assert warning.startswith(
        "`qstat -f 12.server` does not say when the job ends ([Errno 2] No such file or directory"
    )
    assert warning.endswith("none is known; give --deadline")
    assert read_state(tmp_path / "run") == ("finished", 4, "all steps are done")


def test_every_signal_that_asks_to_stop_is_one_that_schedulers_send():
    assert [number.name for number in SIGNALS] == ["SIGTERM", "SIGINT", "SIGUSR1"]
