"""What a run has written about itself, line by line; a line that a kill cut short is left out.

`recorded.py` reads the same for a report, which shows what it can of files that are not whole.
"""

import json
import mmap
from pathlib import Path
from typing import Any

from shared.errors import FormatError
from shared.files import read_bytes, size_of

METRICS_NAME, EVENTS_NAME = "metrics.jsonl", "events.jsonl"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of all steps of a run, alive, finished or dead.

    Raises: FormatError if a line is damaged; FileNotFoundError if it has none yet.
    """
    return _read_lines(run / METRICS_NAME)


def read_events(run: Path) -> list[dict[str, Any]]:
    """All that has happened to it.

    Raises: as `read_metrics`.
    """
    return _read_lines(run / EVENTS_NAME)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = [line for line in read_bytes(path).splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise FormatError(f"{path} is damaged ({error}): take out the line that is not JSON") from None


class Records:
    """Records of single steps in a run's metrics.jsonl as it is now, found without reading the rest of it."""

    def __init__(self, path: Path) -> None:
        self._lines: mmap.mmap | None = None
        if path.is_file() and size_of(path):
            with open(path, "rb") as file:
                self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._end = 0 if self._lines is None else self._lines.rfind(b"\n") + 1

    def of(self, step: int) -> dict[str, Any] | None:
        """The record of `step`, if there is one: lines are in the order of their steps."""
        low, high = 0, self._end
        while low < high:
            start = self._line_start((low + high) // 2)
            record = self._at(start)
            if record["step"] == step:
                return record
            if record["step"] < step:
                low = self._line_end(start)
            else:
                high = start
        return None

    @property
    def last_step(self) -> int:
        """The last step that there is a record of; 0 if there is none."""
        step: int = self._at(self._line_start(self._end - 1))["step"] if self._end else 0
        return step

    def _line_start(self, place: int) -> int:
        assert self._lines is not None
        return self._lines.rfind(b"\n", 0, place) + 1

    def _line_end(self, place: int) -> int:
        assert self._lines is not None
        return self._lines.find(b"\n", place) + 1

    def _at(self, start: int) -> dict[str, Any]:
        assert self._lines is not None
        record: dict[str, Any] = json.loads(self._lines[start : self._line_end(start)])
        return record
