"""The command `slice`, which a job script calls when it begins and when it ends: how the slice of a run went."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shared.directories import exists, remove_file
from shared.files import read_bytes
from shared.slices import Chain, How
from train.outcome import STATE_NAME, read_state
from train.run_files import CHECKPOINTS_NAME

UNIT = "step"
ERROR_NAME = "error.json"
"""Where torchrun leaves what the ranks say was the user's mistake."""


@dataclass(frozen=True)
class SliceOptions:
    """Write down how a slice of a chain of jobs goes; 0 = go on, 3 = the chain has ended. Job scripts call it."""

    what: Annotated[Literal["begin", "end"], tyro.conf.Positional]
    chain: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHAIN")]
    """Directory of the chain."""
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory of the run."""
    job: str
    """The job's name."""
    code: int = 0
    """How the run's command ended."""


def slice_of_run(arguments: Sequence[str]) -> int:
    """For job scripts: tell that a slice of a run begins or how it ended, and hear whether the chain goes on."""
    from train.checkpoint_directory import newest_step  # it needs torch, this module does not

    options = tyro.cli(SliceOptions, args=arguments, prog="python -m train slice")
    chain, now_s = Chain(options.chain, UNIT), time.time()
    step = newest_step(options.run / CHECKPOINTS_NAME)
    if options.what == "begin":
        if exists(options.chain / ERROR_NAME):
            remove_file(options.chain / ERROR_NAME)
        return chain.begin(options.job, step, now_s)
    began_s = chain.slices(step)[-1].began_s
    how, reason = ended(options.run, options.chain / ERROR_NAME, options.code, began_s)
    return chain.end(options.job, step, how, reason, now_s)


def ended(run: Path, error: Path, code: int, began_s: float) -> tuple[How, str]:
    """How a slice ended that began at `began_s`, and why, by what its ranks and its command left."""
    if exists(error):
        message = json.loads(read_bytes(error)).get("message")
        if isinstance(message, str):
            return "mistake", message
    if code == 2:
        return "mistake", "see the log"
    state, _, reason = read_state(run)
    is_told = state is not None and told_s(run) >= began_s
    if state == "finished" and (is_told or code == 0):
        return "finished", reason
    if is_told and state == "requeue":
        return "saved", reason
    if is_told and state == "failed":
        return "failed", reason
    return "died", f"exit code {code} {'in the middle' if is_told else 'before it began'}"


def told_s(run: Path) -> float:
    """When a run's state was written."""
    return float(json.loads(read_bytes(run / STATE_NAME))["time"])
