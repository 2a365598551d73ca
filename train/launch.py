"""Runs the processes of a run on this machine, starts them again when one dies, and says how it all ended."""

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shared.errors import UserError
from shared.locks import exclusive
from shared.storage import write_file
from train.checkpoint_directory import newest_step
from train.console import Console, erase_live_line
from train.findings import MICROBATCH_NAME, largest_allowed
from train.metrics import RunLog
from train.outcome import REQUEUE, State, nothing_to_do, read_state, write_state
from train.ranks import ERROR_FILE, Failure, run_ranks
from train.run_files import CHECKPOINTS_NAME, RUN_NAME
from train.signals import Signals


def default_processes() -> int:
    """The GPUs of this machine, or 2 where there is none."""
    return torch.cuda.device_count() or 2


def leave_message(error: UserError) -> None:
    """Leave a rank's message for the launcher, which says it once however many ranks have it.

    Raises: `error`, if nobody has said where to leave it.
    """
    path = os.environ.get(ERROR_FILE)
    if path is None:
        raise error
    write_file(Path(path), [json.dumps({"message": str(error), "timestamp": int(time.time())}).encode()])


@dataclass(frozen=True)
class Launch:
    """A run that was checked and is to be run, from here to its end."""

    run: Path
    last_step: int
    num_processes: int
    arguments: Sequence[str]
    """Of `python -m train run`."""
    max_restarts: int
    """Of those after which there was neither a checkpoint further on nor a smaller microbatch."""
    console: Console

    def __call__(self, signals: Signals) -> int:
        """Run it and return the exit code.

        0 = finished, REQUEUE = stopped early and saved, 2 = a mistake that a rank has found, 1 = failed.
        """
        if done := nothing_to_do(self.run, self._saved_step(), self.last_step):
            self.console.note(done)
            return 0
        os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // self.num_processes, 1)))
        failure, restarts, in_vain, reached = None, 0, 0, self._reached()
        while not signals.received:
            failure = run_ranks(self.arguments, self.num_processes, restarts, signals)
            if failure is None:
                return self._ended()
            erase_live_line()
            if failure.exit_code == 2:
                print(f"error: {failure.message}", file=sys.stderr)
                return 2
            before, reached = reached, self._reached()
            in_vain = 1 if reached > before else in_vain + 1
            if signals.received:
                break
            if in_vain > self.max_restarts:
                return self._given_up(failure, reached[0])
            restarts += 1
            self._tell_restart(failure, reached[0], in_vain)
        return self._stopped(signals.received[0].name, reached[0], failure)

    def _reached(self) -> tuple[int, float]:
        """How far the run is: the step of its newest checkpoint, then how small its microbatch is."""
        return self._saved_step(), -(largest_allowed(self.run / MICROBATCH_NAME) or math.inf)

    def _saved_step(self) -> int:
        return newest_step(self.run / CHECKPOINTS_NAME)

    def _ended(self) -> int:
        """What the ranks have left to say, all of them having ended well."""
        state, step, reason = read_state(self.run)
        if state == "finished":
            return 0
        print(f"stopped at step {step}, saved ({reason}): run the same command again to continue", file=sys.stderr)
        return REQUEUE

    def _given_up(self, failure: Failure, step: int) -> int:
        reason = f"{failure}, {self.max_restarts} restarts without a new checkpoint"
        self._leave("failed", step, reason)
        print(
            f"error: {reason} (the newest is of step {step}): see above for its message, then run the same command "
            "again",
            file=sys.stderr,
        )
        return 1

    def _stopped(self, asked: str, step: int, failure: Failure | None) -> int:
        """What there is to say when a signal came and no rank was there, or none was left, to act on it."""
        reason = f"{asked}; {failure} before it was saved" if failure else f"{asked}, nothing new to save"
        self._leave("requeue", step, reason)
        print(f"stopped at step {step} ({reason}): run the same command again to continue", file=sys.stderr)
        return REQUEUE

    def _tell_restart(self, failure: Failure, step: int, in_vain: int) -> None:
        details = {"rank": failure.rank, "reason": str(failure), "step": step, "attempt": in_vain}
        if (self.run / RUN_NAME).exists():
            with exclusive(self.run, "run"):
                RunLog(self.run, is_writer=True, console=self.console).event("restart", **details)
        else:
            self.console.event({"time": time.time(), "event": "restart", "problem": str(failure)})

    def _leave(self, state: State, step: int, reason: str) -> None:
        """Say what has become of the run, unless there is none yet."""
        if (self.run / RUN_NAME).exists():
            with exclusive(self.run, "run"):
                write_state(self.run, state, step, reason)
