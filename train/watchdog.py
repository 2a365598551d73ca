"""A thread in each rank that notices when nothing moves, says which rank it is, and ends all so that they start again.

A rank is hung when it has not beaten for longer than its phase may take (patience.py). The rank that notices first
leaves a mark beside the heartbeats; every rank that sees it dumps its stacks and ends with HUNG. That needs neither the
main thread, which may be in a collective for good, nor a group. Only this thread's own time counts: a job that was
suspended and goes on is not hung.
"""

import faulthandler
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from torch.distributed import distributed_c10d

from train.collective import rank, world_size
from train.heartbeat import HEARTBEATS_NAME, Heartbeat, Record, read_heartbeat, read_heartbeats
from train.metrics import RunLog
from train.outcome import HUNG
from train.patience import ENDED, Patience
from train.stragglers import stragglers
from train.verdict import Sighting, Verdict, judge

MARK_NAME = "hang"
STACKS_NAME = "stacks"
TICK_S = 1.0
TICKS = 20
"""In `recovery.hang_timeout_s`, at least."""
DOUBT = 0.75
"""Share of its limit after which a rank begins to look at the others."""
LOOKS = 8
"""A rank in doubt looks so often in the time of its limit."""
STILL = 0.2
"""Share of its limit: who was not seen to tick for so long does not run."""
STRAGGLER_STEPS = 5
"""Rank 0 compares the ranks' paces every so many steps."""
NEVER_S = 1e6
GROUP_TIMEOUT = timedelta(days=1)


class Watchdog(threading.Thread):
    """The watch over one rank."""

    def __init__(self, log: RunLog, heartbeat: Heartbeat) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.log, self.directory = log, log.directory / HEARTBEATS_NAME
        self.heartbeat, self.rank, self.world_size = heartbeat, rank(), world_size()
        self.tick_s = min(TICK_S, heartbeat.patience.hang_timeout_s / TICKS)
        self.main = threading.get_ident()
        self._mark = self.directory / MARK_NAME
        self.stacks_path = log.directory / STACKS_NAME / f"rank-{self.rank}.txt"
        self.stacks_path.parent.mkdir(exist_ok=True)
        self._stacks = open(self.stacks_path, "a")  # noqa: SIM115  must be open before it is needed
        self._asked_to_stop = threading.Event()
        self._ticks, self._beats, self._last = 0, -1, time.monotonic()
        self._awake_s, self._silent_s, self._looked_at_s = 0.0, 0.0, 0.0
        self._seen: dict[int, tuple[int, float]] = {}
        self._compared_step = 0
        self._named: set[int] = set()

    def run(self) -> None:
        """Tick until asked to stop."""
        while not self._asked_to_stop.wait(self.tick_s):
            self._tick()

    def stop(self) -> None:
        """End the watch; if a hang was found meanwhile, end the process."""
        if self._mark.exists():
            self._end()
        self._asked_to_stop.set()
        self.join()
        faulthandler.cancel_dump_traceback_later()
        mine = os.fstat(self._stacks.fileno())
        self._stacks.close()
        is_there = self.stacks_path.exists() and os.path.samestat(mine, self.stacks_path.stat())
        if is_there and mine.st_size == 0:  # else it is of who has taken the run over
            self.stacks_path.unlink()

    def _tick(self) -> None:
        now, beats = time.monotonic(), self.heartbeat.beats
        passed_s = min(now - self._last, 2 * self.tick_s)  # however long this process was suspended
        self._awake_s += passed_s
        self._silent_s = self._silent_s + passed_s if beats == self._beats else 0.0
        self._ticks, self._beats, self._last = self._ticks + 1, beats, now
        self.heartbeat.pulse(self._ticks, self._silent_s, waits=_waits(self.main))
        limit_s = self.heartbeat.patience.limit_s(self.heartbeat.phase)
        # Should this thread not run again, because another one does not give up Python's lock, C code dumps the stacks.
        faulthandler.dump_traceback_later(min(limit_s / 2, NEVER_S), file=self._stacks)
        if self._mark.exists():
            self._end()
        self._look(limit_s)
        if self.rank == 0 and self.heartbeat.step >= self._compared_step + STRAGGLER_STEPS:
            self._compare()

    def _look(self, limit_s: float) -> None:
        """Look at all ranks if this one was silent for long; end if one of them is hung."""
        if self._silent_s < DOUBT * limit_s:
            self._seen, self._looked_at_s = {}, 0.0
            return
        if self._seen and self._silent_s < self._looked_at_s + limit_s / LOOKS:
            return
        self._looked_at_s = self._silent_s
        sightings = [self._sight(number) for number in range(self.world_size)]
        if self._silent_s >= limit_s and (verdict := judge(sightings, self._silent_s, STILL * limit_s)):
            self._tell(verdict)

    def _sight(self, number: int) -> Sighting:
        record = read_heartbeat(self.directory, number)
        ticks, since_s = self._seen.get(number, (None, 0.0))
        if ticks != record.ticks:
            since_s = self._awake_s
            self._seen[number] = record.ticks, since_s
        return Sighting(record, self._awake_s - since_s)

    def _tell(self, verdict: Verdict) -> NoReturn:
        """Say what was found, unless another rank has; then end."""
        try:
            with open(self._mark, "x") as file:
                file.write(verdict.problem + "\n")
        except FileExistsError:
            self._end()
        ranks = [sighting.record.rank for sighting in verdict.blamed]
        stacks = str(self.stacks_path.parent)
        self.log.tell("hang", ranks=ranks, step=self.heartbeat.step, stacks=stacks, problem=verdict.problem)
        self._end(verdict.stopped)

    def _end(self, stopped: Sequence[Sighting] | None = None) -> NoReturn:
        """Dump the stacks of all threads and end the process; the first to end kills those that were stopped."""
        where = f"{self.heartbeat.phase} of step {self.heartbeat.step}"
        print(f"--- {time.ctime()}, {where}", file=self._stacks, flush=True)
        faulthandler.dump_traceback(self._stacks, all_threads=True)
        if stopped is not None:
            time.sleep(3 * self.tick_s)  # the others see the mark before they see that this one is gone
            for sighting in stopped:
                _kill(sighting.record)
        sys.stdout.flush()
        os._exit(HUNG)

    def _compare(self) -> None:
        """Name each rank that is steadily slow, once."""
        self._compared_step = self.heartbeat.step
        for record, usual_s in stragglers(read_heartbeats(self.directory)):
            if record.rank not in self._named:
                self._named.add(record.rank)
                problem = (
                    f"rank {record.rank} on {record.host} takes {record.own_s:.3g} s in a step for what it does "
                    f"alone, the median rank {usual_s:.3g} s"
                )
                self.log.tell("straggler", rank=record.rank, step=record.step, problem=problem)


def _waits(thread: int) -> bool:
    """Whether the innermost function of a thread is one of torch.distributed, or an operation that torch dispatches."""
    frame = sys._current_frames().get(thread)
    name = frame.f_code.co_filename if frame else ""
    return f"{os.sep}torch{os.sep}distributed{os.sep}" in name or name.endswith(f"{os.sep}torch{os.sep}_ops.py")


def _kill(record: Record) -> None:
    """Kill a rank of this machine that the same launcher started; others are their launcher's to kill."""
    if record.host == socket.gethostname() and _parent(record.pid) == os.getppid():
        os.kill(record.pid, signal.SIGKILL)


def _parent(pid: int) -> int | None:
    """The process that started a process, where the system tells (Linux)."""
    path = Path(f"/proc/{pid}/stat")
    return int(path.read_text().rpartition(")")[2].split()[1]) if path.exists() else None


@contextmanager
def watching(log: RunLog, hang_timeout_s: float | None) -> Iterator[Heartbeat]:
    """The heartbeat of this rank, watched until the block ends. Rank 0 must have called `clear_heartbeats` before."""
    limit_s = math.inf if hang_timeout_s is None else hang_timeout_s
    heartbeat = Heartbeat(log.directory / HEARTBEATS_NAME, rank(), Patience(limit_s))
    watchdog = Watchdog(log, heartbeat)
    watchdog.start()
    try:
        yield heartbeat
    finally:
        watchdog.stop()
        heartbeat.beat(heartbeat.step, ENDED)
        heartbeat.close()


def clear_heartbeats(run: Path) -> None:
    """Forget the ranks of an earlier start."""
    directory = run / HEARTBEATS_NAME
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    for path in (run / STACKS_NAME).glob("*"):
        if path.stat().st_size == 0:
            path.unlink()


def outwait_watchdog() -> None:
    """Let all groups that exist wait for longer than the watchdogs do, whose message says more than a time-out."""
    for group in distributed_c10d._world.pg_map:
        distributed_c10d._set_pg_timeout(GROUP_TIMEOUT, group)
