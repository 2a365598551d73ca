"""A run that is killed and started again is the run that was not."""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers import run_cli, start_cli
from train.records import read_metrics

pytestmark = pytest.mark.slow
KEPT = ("step", "loss", "grad_norm", "lr", "tokens", "epoch", "shard", "offset", "data_digest")
STEPS = 20


def arguments(tokens: Path, run: Path, strategy: str) -> list[object]:
    return [
        *("run", tokens, run, "--strategy", strategy, "--nproc", 2),
        *("--model.hidden-size", 64, "--model.num-hidden-layers", 2, "--model.num-attention-heads", 4),
        *("--model.intermediate-size", 128, "--model.hidden-dropout", 0.1, "--data.sequence-length", 64),
        *("--data.global-batch", 8, "--data.validation-chunks", 8, "--training.microbatch", 2),
        *("--training.total-steps", STEPS, "--checkpoint.every", 3, "--optimizer.warmup-steps", 3),
    ]


def records(run: Path) -> list[tuple]:
    return [tuple(record[key] for key in KEPT) for record in read_metrics(run)]


def kill_after(step: int, tokens: Path, run: Path, strategy: str) -> None:
    """Start the run and SIGKILL all its processes once it has written the line of `step`."""
    process = start_cli("train", *arguments(tokens, run, strategy))
    started = wait_for_step(process, run, step - 3)
    doomed = family(process.pid)  # asked for ahead: the run must not end while it is looked up
    assert wait_for_step(process, run, step) < STEPS, f"at step {started} already"
    for pid in doomed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> int:
    """The last step in the run's metrics, once it is at least `step`."""
    while True:
        found = records(run)[-1][0] if (run / "metrics.jsonl").exists() and read_metrics(run) else 0
        if found >= step:
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def family(pid: int) -> set[int]:
    """A process and all its descendants."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(line.split()[0]): int(line.split()[1]) for line in listed.splitlines()}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


@pytest.mark.parametrize("strategy", [pytest.param("fsdp", marks=pytest.mark.long), "pipeline"])
def test_a_run_killed_twice_equals_an_uninterrupted_one_bit_for_bit(strategy, small_tokens, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert run_cli("train", *arguments(small_tokens, straight, strategy)).returncode == 0
    kill_after(7, small_tokens, killed, strategy)
    kill_after(13, small_tokens, killed, strategy)
    finished = run_cli("train", *arguments(small_tokens, killed, strategy))
    assert finished.returncode == 0, finished.stderr
    assert int(re.search(r"start: step (\d+)", finished.stdout)[1]) in (9, 12, 15, 18)  # 12's save may not have ended
    assert [record[0] for record in records(killed)] == list(range(1, STEPS + 1))
    assert records(killed) == records(straight)


def test_a_run_continues_under_the_other_strategy_with_the_same_data(small_tokens, tmp_path):
    straight, switched = tmp_path / "straight", tmp_path / "switched"
    for run, strategies in ((straight, ["fsdp"]), (switched, ["pipeline", "fsdp"])):
        for strategy, stop in zip(strategies, [9, STEPS][-len(strategies) :], strict=True):
            options = [*arguments(small_tokens, run, strategy), "--model.hidden-dropout", 0.0, "--stop-step", stop]
            assert run_cli("train", *options).returncode == 0
    for one, other in zip(records(switched), records(straight), strict=True):
        assert one[4:] == other[4:]
        assert one[1:4] == pytest.approx(other[1:4], rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_a_signal_ends_a_run_saved_and_the_same_command_continues_it(number, small_tokens, tmp_path):
    run = tmp_path / "run"
    options = [*arguments(small_tokens, run, "fsdp"), "--training.total-steps", 100_000, "--checkpoint.every", "None"]
    process = start_cli("train", *options)
    wait_for_step(process, run, 1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "Traceback" not in err
    assert "run the same command again to continue" in err
    step = read_metrics(run)[-1]["step"]
    assert f"stopped: step {step}," in out
    again = run_cli("train", *options, "--stop-step", step + 1)
    assert f"start: step {step}," in again.stdout, again.stderr
    assert [record["step"] for record in read_metrics(run)] == list(range(1, step + 2))
