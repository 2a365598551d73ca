"""A chain of jobs that carries one piece of work to its end: what came of each slice, and whether another follows.

A chain's directory (RUN-job beside a run) holds job.sh, a log, slices.jsonl, and once the chain has ended a marker:
FINISHED or STOPPED, with the reason in words. Where a marker is, no slice begins; deleting it lets the chain go on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from shared.directories import exists, make_directory, remove_file
from shared.errors import ConfigError
from shared.files import read_bytes
from shared.storage import append_line, write_file
from shared.terminal import safe_text

HISTORY_NAME = "slices.jsonl"
FINISHED_NAME = "FINISHED"
STOPPED_NAME = "STOPPED"
SCRIPT_NAME = "job.sh"
LOG_NAME = "log"
NEXT_NAME = "next"
"""The job that was asked for last."""
GO_ON = 0
"""Exit code: another slice is wanted."""
ENDED = 3
"""Exit code: the chain is at its end, and the marker says why."""
IDLE_SLICES = 3
"""That got no further, one after the other, end the chain: its slices are too short, or something is in their way."""

How = Literal["saved", "finished", "failed", "died", "mistake"]


@dataclass(frozen=True)
class Slice:
    """One job of a chain."""

    job: str
    """As the batch system names it."""
    began_s: float
    """Seconds since 1970."""
    began_at: int
    """Where the work was: a step, or how many shards were there."""
    ended_at: int
    how: How = "died"
    """saved: another is to go on. mistake: it would be made again. died: it never told how it ended."""
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether a chain goes on, and if not, why."""

    marker: Literal["FINISHED", "STOPPED"] | None
    """The file that tells it; None while it goes on."""
    reason: str = ""


def judge(slices: Sequence[Slice], unit: str) -> Verdict:
    """What follows from the slices that have ended, oldest first; `unit` is what their places count.

    >>> judge([Slice("1", 0.0, 0, 40, "failed", "out of memory"), Slice("2", 9.0, 40, 40, "died")], "step")
    Verdict(marker='STOPPED', reason='failed twice at step 40: died without a word; before that: out of memory')
    >>> judge([Slice("1", 0.0, 0, 40, "failed"), Slice("2", 9.0, 40, 60, "died")], "step").marker
    """
    if not slices:
        return Verdict(None)
    last = slices[-1]
    if last.how == "finished":
        return Verdict("FINISHED", last.reason)
    if last.how == "mistake":
        return Verdict("STOPPED", f"needs a person: {last.reason}")
    failed = [ended.how in ("failed", "died") and ended.ended_at == last.ended_at for ended in slices[-2:]]
    if failed == [True, True]:
        before, why = (ended.reason or "died without a word" for ended in slices[-2:])
        told = why if why == before else f"{why}; before that: {before}"
        return Verdict("STOPPED", f"failed twice at {unit} {last.ended_at}: {told}")
    idle = [ended.began_at == last.ended_at == ended.ended_at for ended in slices[-IDLE_SLICES:]]
    if len(idle) == IDLE_SLICES and all(idle):
        return Verdict(
            "STOPPED",
            f"needs a person: {IDLE_SLICES} slices got no further than {unit} {last.ended_at} ({last.reason}): "
            "give them more time, or mend what ends them",
        )
    return Verdict(None)


class Chain:
    """The chain whose directory is `directory`; `unit` is what its places count, for messages."""

    def __init__(self, directory: Path, unit: str) -> None:
        self.directory, self.unit = directory, unit

    def begin(self, job: str, at: int, now_s: float) -> int:
        """Write down that a slice begins with the work at `at`: GO_ON, or ENDED if none is to follow those before."""
        make_directory(self.directory)
        slices = self.slices(at)
        if (verdict := judge(slices, self.unit)).marker is not None:
            return self._ended(verdict, slices[-1], now_s)
        self._tell({"event": "begin", "job": job, "at": at, "time": now_s})
        print(f"--- slice {len(slices) + 1} (job {safe_text(job)}) from {self.unit} {at} on", flush=True)
        return GO_ON

    def renew(self, now_s: float) -> None:
        """Let a chain that has ended begin anew, or a new one begin.

        Raises: ConfigError if it has not ended.
        """
        make_directory(self.directory)
        slices, marker = self.slices(0), self.marker()
        if slices and marker is None:
            raise ConfigError(
                f"{safe_text(str(self.directory))} has a chain that has not ended (its newest job is "
                f"{safe_text(slices[-1].job)}): let it, or cancel its jobs and `touch {STOPPED_NAME}` there"
            )
        if marker is not None:
            self._tell({"event": "marker", "marker": None, "reason": "submitted again", "time": now_s})
            remove_file(marker)

    def end(self, job: str, at: int, how: How, reason: str, now_s: float) -> int:
        """Write down how a slice ended: GO_ON, or ENDED if no other is to follow."""
        self._tell({"event": "end", "job": job, "at": at, "how": how, "reason": reason, "time": now_s})
        slices = self.slices(at)
        print(f"--- slice {len(slices)} ended at {self.unit} {at}: {how}, {safe_text(reason)}", flush=True)
        verdict = judge(slices, self.unit)
        return GO_ON if verdict.marker is None else self._ended(verdict, slices[-1], now_s)

    def marker(self) -> Path | None:
        """The file that says that the chain has ended, if it has."""
        names = (FINISHED_NAME, STOPPED_NAME)
        return next((self.directory / name for name in names if exists(self.directory / name)), None)

    def slices(self, at: int) -> list[Slice]:
        """The slices since the chain was begun or let go on, oldest first; `at` is where the work is now."""
        path, found = self.directory / HISTORY_NAME, list[Slice]()
        lines = read_bytes(path).splitlines() if exists(path) else []
        for event in map(json.loads, lines):
            if event["event"] == "begin":
                if found and found[-1].how == "died":
                    found[-1] = replace(found[-1], ended_at=event["at"])
                found.append(Slice(event["job"], event["time"], event["at"], at))
            elif event["event"] == "end" and found and found[-1].job == event["job"]:
                found[-1] = _ended(found[-1], event)
            elif event["event"] == "marker":
                found.clear()
        return found

    def _tell(self, event: Mapping[str, Any]) -> None:
        append_line(self.directory / HISTORY_NAME, json.dumps(event))

    def mark(self, verdict: Verdict, at: int, job: str, now_s: float) -> int:
        """Leave the marker of a chain that has ended, with its work at `at`; ENDED."""
        assert verdict.marker is not None
        moment = datetime.fromtimestamp(now_s).astimezone().isoformat(" ", "seconds")
        where = f"{moment}, {self.unit} {at}, job {job}; slices: {HISTORY_NAME}, output: {LOG_NAME}"
        lines = [verdict.reason, where]
        if verdict.marker == STOPPED_NAME:
            lines.append(f"to go on: mend it, delete this file, and submit {SCRIPT_NAME} from this directory")
        text = "".join(f"{safe_text(line)}\n" for line in lines)
        write_file(self.directory / verdict.marker, [text.encode()])
        print(f"--- the chain has ended: {verdict.marker}, {safe_text(verdict.reason)}", flush=True)
        return ENDED

    def _ended(self, verdict: Verdict, last: Slice, now_s: float) -> int:
        self._tell({"event": "marker", "marker": verdict.marker, "reason": verdict.reason, "time": now_s})
        return self.mark(verdict, last.ended_at, last.job, now_s)


def _ended(begun: Slice, event: Mapping[str, Any]) -> Slice:
    return replace(begun, ended_at=event["at"], how=event["how"], reason=event["reason"])
