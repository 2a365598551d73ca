"""Brings the steps of a run to a tracker: `python -m train.follow RUN TRACKER STEP`, a process of its own.

It reads metrics.jsonl, which is the truth, as it grows. So a tracker that is slow, hangs or crashes costs the run
nothing, and what one has not got yet it gets at the next start. Standard input says `rewind STEP` when steps after STEP
are void, and ends with the run.
"""

import json
import math
import os
import secrets
import select
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from shared.storage import read_sealed
from train.records import METRICS_NAME
from train.trackers import TRACKERS, Tracker

LOGGERS_NAME = "loggers"
POLL_S = 1.0
PLACES = {"step", "epoch", "shard", "offset"}
"""Numbers of a record that are nothing to draw."""


class Mark:
    """RUN/loggers/TRACKER: the last step that a tracker was given, and the id of its run. It survives a kill."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        fields = path.read_text().split() if path.exists() else []
        self.step, self.is_validated = (int(fields[0]), fields[1] == "1") if fields else (-1, False)
        self.identity = fields[2] if fields else secrets.token_hex(4)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)

    def put(self, step: int, is_validated: bool) -> None:
        """Move it, in one write of always the same size."""
        self.step, self.is_validated = step, is_validated
        os.pwrite(self._file, f"{step:20} {is_validated:d} {self.identity}\n".encode(), 0)


class Follower:
    """The records of a metrics.jsonl that may not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def new(self) -> Iterator[dict[str, Any]]:
        """Those that were not read yet; all of them if the file was replaced."""
        if not self.path.exists():
            return
        if self._file is None or self.path.stat().st_ino != os.fstat(self._file.fileno()).st_ino:
            self._file = open(self.path, "rb")  # noqa: SIM115  it is read on for as long as the run lives
        while line := self._file.readline():
            if not line.endswith(b"\n"):
                self._file.seek(-len(line), os.SEEK_CUR)
                return
            yield json.loads(line)


class Following:
    """One tracker, and what it has got."""

    def __init__(self, run: Path, name: str) -> None:
        recipe = read_sealed(run / "run.json")["identity"]["recipe"]
        self.mark = Mark(run / LOGGERS_NAME / name)
        self.tracker: Tracker = TRACKERS[name](run.resolve(), self.mark.identity, recipe)

    def rewind(self, step: int) -> None:
        """Steps after `step` will be done again: give them again, with `step`, if the tracker can forget its own.

        If it cannot, what it has of them stays, so that no step is there twice.
        """
        if self.tracker.rewind(step):
            self.mark.put(min(self.mark.step, step - 1), is_validated=False)

    def give(self, record: Mapping[str, Any]) -> None:
        """Give a record to the tracker, unless it has it; of the last one, a validation loss that came late.

        It counts as given before it is: after a kill none is there twice.
        """
        step, is_validated = record["step"], "validation_loss" in record
        if step > self.mark.step:
            values = numbers(record)
        elif step == self.mark.step and is_validated and not self.mark.is_validated:
            values = {"validation_loss": record["validation_loss"]}
        else:
            return
        self.mark.put(step, is_validated)
        self.tracker.log(step, values)


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """What of a record can be drawn.

    >>> numbers({"step": 3, "loss": None, "lr": 0.5, "skipped": 1, "data_digest": "ab", "shard": 2})
    {'lr': 0.5, 'skipped': 1}
    """
    named = {name: value for name, value in record.items() if name not in PLACES and isinstance(value, int | float)}
    return {name: value for name, value in named.items() if math.isfinite(value)}


def follow(run: Path, name: str, step: int) -> None:
    """Give the steps of a run, which has done `step` of them, to a tracker until standard input ends."""
    following, follower = Following(run, name), Follower(run / METRICS_NAME)
    following.rewind(step)
    said = b""
    is_over = False
    while not is_over:
        if select.select([sys.stdin], [], [], POLL_S)[0]:
            heard = os.read(sys.stdin.fileno(), 4096)
            is_over = not heard
            *commands, said = (said + heard).split(b"\n")
            for command in commands:
                following.rewind(int(command.removeprefix(b"rewind ")))
                follower = Follower(follower.path)
        for record in follower.new():
            following.give(record)
    following.tracker.close()


if __name__ == "__main__":
    follow(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
