"""What the tests of whole runs share: launchers with a fault in a rank, and what a run has left behind."""

import json
import subprocess
from pathlib import Path

from tests.helpers import start_cli
from tests.test_watchdog import recipe_file
from train.checkpoint_directory import newest_step
from train.records import read_metrics

KEPT = ("step", "loss", "grad_norm", "tokens", "epoch", "shard", "offset", "data_digest", "validation_loss")


def events(run: Path, name: str) -> list[dict]:
    path = run / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


def saved_step(run: Path) -> int:
    return newest_step(run / "checkpoints")


def records(run: Path) -> list[list]:
    return [[record.get(key) for key in KEPT] for record in read_metrics(run)]


def arguments(tokens: Path, directory: Path, **changes) -> list[object]:
    """Of `train run` on two ranks, in `directory`/run. A save has ended when the next step begins."""
    usual = {"recovery__hang_timeout_s": 60.0, "checkpoint__asynchronous": False}
    path = recipe_file(directory, **{**usual, **changes})
    return [tokens, directory / "run", "--recipe", path, "--nproc", 2]


def start_faulty(fault: str, tokens: Path, directory: Path, *options: object, **changes) -> subprocess.Popen[str]:
    """The launcher of a run with a fault in a rank."""
    words = [*fault.split(), *arguments(tokens, directory, **changes), *options]
    return start_cli("tests.faulty_launch", *words, OMP_NUM_THREADS="1")


def run_faulty(fault: str, tokens: Path, directory: Path, *options: object, **changes) -> tuple[int, str, str]:
    process = start_faulty(fault, tokens, directory, *options, **changes)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
