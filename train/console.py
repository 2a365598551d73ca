"""What a run prints on stdout: lines for people, as little as can be, or JSON for programs."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from shared.live import LiveLine, erase_line
from train.outlook import Outlook

Output = Literal["lines", "quiet", "json"]
ENDS = ("finished", "stopped")
FAILURES = ("damaged", "hang", "restart", "save-failed")
"""What a quiet run says nevertheless."""
UNSAID = ("time", "event", "reads")
"""What of an event is not for people, or said otherwise."""


class Console(Protocol):
    """Where a run tells of its steps and events; safe to be told of events by any thread."""

    outlook: Outlook

    def step(self, record: Mapping[str, Any], is_last: bool) -> None:
        """A step has ended."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Something has happened: a line of events.jsonl."""

    def note(self, text: str) -> None:
        """Something that stands in no file."""

    def close(self) -> None:
        """No step follows."""


class Lines:
    """For people: on a terminal one live line, elsewhere one every INTERVAL_S; events between them."""

    def __init__(self, outlook: Outlook) -> None:
        self.outlook = outlook
        self._record: Mapping[str, Any] | None = None
        self._told: Mapping[str, Any] | None = None
        self._live = LiveLine(sys.stdout, self._line)

    def step(self, record: Mapping[str, Any], is_last: bool) -> None:
        """Show it; the lines of the first, the last and validated steps stay, on a terminal not that of the first."""
        is_first, self._record = self._record is None, record
        self._live.start()
        if is_last:
            self.close()
        elif "validation_loss" in record or (is_first and not self._live.is_rewritable) or self._live.is_due():
            self._tell()

    def event(self, event: Mapping[str, Any]) -> None:
        """Say it above the live line, or after the last step if it is the end."""
        if event["event"] in ENDS:
            self.close()
        self._live.say(_told(event), "bold yellow" if "problem" in event else "bold")

    def note(self, text: str) -> None:
        """Say it."""
        self._live.say(text)

    def close(self) -> None:
        """Leave a line of the last step."""
        self._live.stop(keep=False)
        if self._record is not None:
            self._tell()

    def _tell(self) -> None:
        """Say the newest step, once."""
        if self._told is not self._record:
            self._told = self._record
            self._live.say(self._line(None))

    def _line(self, columns: int | None) -> str:
        return "" if self._record is None else line(self._record, self.outlook, time.monotonic(), columns)


class Quiet:
    """Failures and how the run ended."""

    def __init__(self, outlook: Outlook) -> None:
        self.outlook = outlook

    def step(self, record: Mapping[str, Any], is_last: bool) -> None:
        """Nothing."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Say it if it is the end or a failure."""
        if event["event"] in (*ENDS, *FAILURES):
            self.note(_told(event))

    def note(self, text: str) -> None:
        """Say it."""
        LiveLine(sys.stdout, lambda _: "").say(text)

    def close(self) -> None:
        """Nothing."""


class JsonLines:
    """For programs: each line of metrics.jsonl and events.jsonl when it is written; an event has a key "event"."""

    def __init__(self, outlook: Outlook) -> None:
        self.outlook = outlook
        self._stream = sys.stdout

    def step(self, record: Mapping[str, Any], is_last: bool) -> None:
        """The record."""
        del is_last
        self._print(record)

    def event(self, event: Mapping[str, Any]) -> None:
        """The event."""
        self._print(event)

    def note(self, text: str) -> None:
        """An event that stands in no file."""
        self._print({"time": time.time(), "event": "note", "problem": text})

    def close(self) -> None:
        """Nothing."""

    def _print(self, found: Mapping[str, Any]) -> None:
        print(json.dumps(found), file=self._stream, flush=True)


def console(output: Output, outlook: Outlook) -> Console:
    """The console that a user asks for."""
    kinds: dict[Output, type[Lines | Quiet | JsonLines]] = {"lines": Lines, "quiet": Quiet, "json": JsonLines}
    return kinds[output](outlook)


def erase_live_line() -> None:
    """Remove what a rank that was killed has left in its line."""
    erase_line(sys.stdout)


def line(record: Mapping[str, Any], outlook: Outlook, now_s: float, columns: int | None = None) -> str:
    """A step for people. In few `columns` what matters least is left out.

    >>> record = {"step": 6, "loss": 2.5, "grad_norm": 1.0, "lr": 1e-3, "tokens_per_s": 1234.5, "step_s": 90.0}
    >>> record |= {"mfu": 0.5, "data_wait_s": 0.0123}
    >>> outlook = Outlook(last_step=46, deadline_s=7200.0)
    >>> outlook.stepped(record, 0.0)
    >>> line(record, outlook, 0.0, 85)
    'step 6/46  loss 2.5000  1,234 tokens/s  mfu 50%  left 1:00:00  job ends in 2:00:00'
    >>> line(record, outlook, 0.0, 50)
    'step 6/46  loss 2.5000  left 1:00:00'
    """
    is_skipped = record["loss"] is None
    deadline_s = outlook.deadline_left_s(now_s)
    parts = [  # with how little they matter
        (0, f"step {record['step']}/{outlook.last_step}"),
        (1, "skipped" if is_skipped else f"loss {record['loss']:.4f}"),
        (8, "" if is_skipped else f"grad {record['grad_norm']:.3f}"),
        (7, f"validation {record['validation_loss']:.4f}" if "validation_loss" in record else ""),
        (9, f"lr {record['lr']:.2e}"),
        (3, f"{record['tokens_per_s']:,.0f} tokens/s"),
        (5, f"mfu {record['mfu']:.0%}"),
        (6, f"data-wait {record['data_wait_s'] * 1000:.1f} ms"),
        (2, f"left {_clock(outlook.left_s(now_s))}"),
        (4, "" if deadline_s is None else f"job ends in {_clock(deadline_s)}"),
    ]
    return _fitting([part for part in parts if part[1]], columns)


def _fitting(parts: list[tuple[int, str]], columns: int | None) -> str:
    """The parts in one line, without those that matter least if there is no room for all."""
    text = "  ".join(text for _, text in parts)
    if columns is None or len(text) <= columns or len(parts) == 1:
        return text
    least = max(parts)
    return _fitting([part for part in parts if part != least], columns)


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def _told(event: Mapping[str, Any]) -> str:
    details = ", ".join(f"{key} {value}" for key, value in event.items() if key not in UNSAID)
    return f"{event['event']}: {event.get('problem') or details}"
