"""How a run or one of its ranks ends: exit codes, and RUN/state.json, which job scripts read too."""

import time
from pathlib import Path
from typing import Literal

from shared.storage import read_sealed, write_sealed

OUT_OF_MEMORY = 71
"""Of a rank: start all of them again, with the smaller microbatch that was written down."""
HUNG = 72
"""Of a rank: some rank did not move; start all of them again."""
REQUEUE = 75
"""Of the command: stopped early and saved; the same command continues (EX_TEMPFAIL of sysexits.h)."""

STOP_STEP = "--stop-step"
"""Why a run finished before all its steps were done."""

STATE_NAME = "state.json"
State = Literal["running", "finished", "requeue", "failed"]


def write_state(run: Path, state: State, step: int, reason: str) -> None:
    """Say what has become of a run, durable and whole; only who holds the run's directory may."""
    write_sealed(run / STATE_NAME, {"state": state, "step": step, "reason": reason, "time": time.time()})


def read_state(run: Path) -> tuple[State | None, int, str]:
    """State, step and reason of a run as last written; None, 0 and "" if nothing was."""
    path = run / STATE_NAME
    if not path.exists():
        return None, 0, ""
    document = read_sealed(path)
    return document["state"], document["step"], document["reason"]


def nothing_to_do(run: Path, step: int, last_step: int) -> str | None:
    """What to say to a run that is to go to `last_step` and has ended there; None if there is something to do.

    `step` is that of its newest checkpoint.
    """
    state, _, reason = read_state(run)
    if state != "finished" or step < last_step:
        return None
    later = STOP_STEP if reason == STOP_STEP else "training.total_steps"
    return f"{run} finished at step {step} ({reason}): nothing to do; give a later {later} to go on"
