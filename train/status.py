"""Where the ranks of a run are, alive, hung or dead: a line for each, from the heartbeats of its last start."""

import time
from pathlib import Path

from shared.errors import FormatError
from train.heartbeat import HEARTBEATS_NAME, Record, read_heartbeats
from train.patience import ENDED
from train.watchdog import MARK_NAME

DEAD_S = 10.0
"""A process whose watchdog thread did not tick for so long is stopped, or not there any more."""


def status(run: Path) -> str:
    """A line for each rank: where it is, since when, and whether its process runs; the hang that ended it, if one did.

    Ages are differences of wall times: of ranks on other machines they are as good as the clocks agree.

    Raises: FormatError if the run has no heartbeats.
    """
    directory = run / HEARTBEATS_NAME
    if not (records := read_heartbeats(directory)):
        raise FormatError(f"{run} has no {HEARTBEATS_NAME}: name the directory of a run that was started")
    now, width = time.time(), max(len(record.host) for record in records)
    lines = [f"rank  {'host':<{width}}      pid      step  phase        since  process"]
    lines += [
        f"{record.rank:>4}  {record.host:<{width}}  {record.pid:>7}  {record.step:>8}  {record.phase:<8}  "
        f"{max(now - record.time, 0):>6.1f} s  {_process(record, now)}"
        for record in records
    ]
    mark = directory / MARK_NAME
    return "\n".join(lines + ([f"hang: {mark.read_text().rstrip()}"] if mark.exists() else []))


def _process(record: Record, now: float) -> str:
    if record.phase == ENDED:
        return "ended"
    still_s = now - record.pulse_time
    if still_s > DEAD_S:
        return f"dead or stopped for {still_s:.0f} s"
    return "hung" if record.silent_s > record.limit_s else "runs"
