"""What a run says of itself before its first step and after its last, and that nobody else has its directory."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from shared.directories import listing, make_directory, remove_file, written_name
from shared.errors import UserError
from shared.files import read_bytes
from shared.format import TOKENIZER_NAME
from shared.locks import LOCK_NAME, exclusive
from shared.storage import write_file, write_sealed
from train.checkpoint import Progress
from train.checkpoint_directory import newest_step
from train.collective import gather, rank, world_size
from train.deadline import Deadline, Pace, guessed_save_s
from train.loss_plot import draw_losses
from train.memory import saved_bytes
from train.memory_errors import RankOutOfMemory
from train.metrics import RunLog
from train.outcome import STOP_STEP, write_state
from train.parts import Parts
from train.preflight import Prepared, versions
from train.recorded import read_run
from train.recovery import StopRequest
from train.run_files import CHECKPOINTS_NAME, RUN_NAME
from train.validation import is_owed
from train.walltime import job_end
from train.watchdog import clear_heartbeats


def restarts() -> int:
    """Times that these ranks were started again after one died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def told_of_process() -> dict[str, Any]:
    """What a start tells of this rank: its machine, how many ranks there are, and how long it took to come here."""
    told = {"host": socket.gethostname(), "ranks": world_size()}
    age_s = process_age_s()
    return told if age_s is None else told | {"setup_s": round(age_s, 3)}


def process_age_s() -> float | None:
    """Seconds since this process was begun, where the system tells (Linux)."""
    path = Path("/proc/self/stat")
    if not path.exists():
        return None
    began_ticks = int(path.read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began_ticks / os.sysconf("SC_CLK_TCK")


def tell_end(prepared: Prepared, parts: Parts, progress: Progress) -> None:
    """Say how the run ended, and draw it."""
    run, total_steps = prepared.request.run, prepared.config.total_steps
    asked = next(filter(None, gather(parts.stop.reason)), "")
    is_done = progress.step >= prepared.last_step
    is_done = is_done and not is_owed(prepared.config, parts.reader, parts.log, progress.step)
    if rank() != 0:
        return
    reason = asked if not is_done else STOP_STEP if progress.step < total_steps else "all steps are done"
    write_state(run, "finished" if is_done else "requeue", progress.step, reason)
    ended = "finished" if is_done and progress.step == total_steps else "stopped"
    where = {"step": progress.step, "tokens": progress.tokens, "data_digest": progress.data_digest}
    parts.log.event(ended, **where, reason=reason)
    parts.log.flush()
    if progress.step > 0:
        draw_losses(read_run(run), run)


def expect_end(prepared: Prepared, stop: StopRequest, log: RunLog, is_first: bool) -> None:
    """Find out when the job ends, and write down that the run is going on.

    Raises: UserError, on every rank, if a run that was not just restarted could not do and save a single step.
    """
    config, run = prepared.config, prepared.request.run
    stop.pace = Pace(guessed_save_s(saved_bytes(config)))
    if rank() == 0:
        try:
            end = job_end(prepared.request.deadline, os.environ)
        except UserError as error:  # a container, say, that the commands of the batch system are not in
            log.event("warning", problem=str(error))
            end = None
        if end is not None:
            end_s = time.monotonic() + end.at_s - time.time()
            stop.deadline = Deadline(end_s, config.recovery.deadline_margin_s, end.source)
            log.console.outlook.deadline_s = end_s
            log.event("deadline", end=str(end), left_s=round(end.at_s - time.time(), 1))
        write_state(run, "running", newest_step(run / CHECKPOINTS_NAME), "")
    problem = gather(stop.too_late())[0]
    if problem and is_first:
        raise UserError(problem)


@contextmanager
def failure_told(run: Path) -> Iterator[None]:
    """What ends the block early is written down as why the run failed, unless it is a rank that is to start again."""
    try:
        yield
    except (SystemExit, RankOutOfMemory):
        raise
    except BaseException as error:  # torch's CheckpointException is no Exception
        if rank() == 0:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            write_state(run, "failed", newest_step(run / CHECKPOINTS_NAME), reason)
        raise


def claim(prepared: Prepared, stack: ExitStack) -> str | None:
    """Hold the run's directory until `stack` ends and write down what the run is; what went wrong, or None."""
    request = prepared.request
    make_directory(request.run)
    try:  # ranks that were started again have nothing to take over, but may have been robbed meanwhile
        stack.enter_context(exclusive(request.run, "run", steal=request.steal and restarts() == 0))
    except UserError as error:
        return str(error)
    for path in listing(request.run):
        if written_name(path.name) not in (None, LOCK_NAME):
            remove_file(path)
    clear_heartbeats(request.run)
    resolved = {"identity": prepared.identity, "total_steps": prepared.config.total_steps, "versions": versions()}
    write_sealed(request.run / RUN_NAME, resolved)
    write_file(request.run / TOKENIZER_NAME, [read_bytes(prepared.datasets.parts[0].tokens / TOKENIZER_NAME)])
    return None
