"""The only wiring: builds the parts of a run on this rank and hands them to the loop."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from shared.allocator import keep_freed_memory
from shared.directories import listing, make_directory, remove_file, written_name
from shared.errors import UserError
from shared.files import read_bytes
from shared.format import TOKENIZER_NAME
from shared.locks import LOCK_NAME, exclusive
from shared.storage import write_file, write_sealed
from train.checkpoint import Checkpoints, Progress
from train.checkpoint_directory import newest_step
from train.collective import gather, rank
from train.data import ChunkReader
from train.deadline import Deadline, Pace, guessed_save_s
from train.heartbeat import Heartbeat
from train.joining import join
from train.layout import flops_per_token, num_parameters
from train.loop import train
from train.metrics import RunLog, measured_peak_flops
from train.microbatch import MICROBATCH_NAME, choose_microbatch, fastest
from train.optim import build_optimizer
from train.outcome import STOP_STEP, nothing_to_do, write_state
from train.parts import Parts
from train.patience import VALIDATE
from train.preflight import CHECKPOINTS_NAME, RUN_NAME, Prepared, RunRequest, changes, prepare, versions
from train.profiling import profiled
from train.provenance import Provenance
from train.recovery import StopRequest
from train.report import plot_losses
from train.rollback import skip_again
from train.schedule import why_not_annealed
from train.signals import Signals
from train.spikes import WINDOW, Spikes
from train.stragglers import OwnWork
from train.strategy import PRECISIONS, Strategy, build_strategy
from train.validation import is_owed, validation_record
from train.walltime import job_end
from train.watchdog import clear_heartbeats, outwait_watchdog, watching

LARGEST_KEPT_BYTES = 1 << 30  # activations and gradients on a CPU: a step needs again what the last one had


def run(request: RunRequest, signals: Signals | None = None) -> None:
    """Start or continue a run as one rank of a torchrun job.

    Raises: UserError for what `prepare` finds, on every rank alike.
    """
    stop = StopRequest(signals)
    keep_freed_memory(LARGEST_KEPT_BYTES)
    prepared = prepare(request, int(os.environ["WORLD_SIZE"]))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        join("cpu:gloo,cuda:nccl")
    else:
        device = torch.device("cpu")
        join("gloo")
    step = newest_step(request.run / CHECKPOINTS_NAME)
    done = gather(nothing_to_do(request.run, step, prepared.last_step) if rank() == 0 else None)[0]
    if done is None:
        execute(prepared, device, stop)
    elif rank() == 0:
        print(done)
    dist.destroy_process_group()  # not after an error: it may wait for ranks that are gone


def restarts() -> int:
    """Times that these ranks were started again after one died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def execute(prepared: Prepared, device: torch.device, stop: StopRequest) -> Progress:
    """Train from the newest valid checkpoint, or from nothing, to the last step asked for; return where the run is."""
    with ExitStack() as stack:
        changed = [*changes(prepared).values()]
        problem = gather(_claim(prepared, stack) if rank() == 0 else None)[0]
        if problem:
            raise UserError(problem)
        stack.enter_context(_failure_told(prepared.request.run))
        log = RunLog(prepared.request.run, rank() == 0, prepared.config.total_steps)
        heartbeat = stack.enter_context(watching(log, prepared.config.recovery.hang_timeout_s))
        return _train(prepared, device, stop, log, heartbeat, changed)


def _train(
    prepared: Prepared,
    device: torch.device,
    stop: StopRequest,
    log: RunLog,
    heartbeat: Heartbeat,
    changed: list[str],
) -> Progress:
    config, request = prepared.config, prepared.request
    strategy = build_strategy(config, prepared.layout, device)
    if config.recovery.hang_timeout_s is not None:
        outwait_watchdog()
    for part in strategy.parts:
        if part.compilation is not None:
            part.compilation.report = lambda reason: log.event("eager", reason=reason)
    layout, trials = choose_microbatch(
        strategy, config, prepared.layout, device, request.run / MICROBATCH_NAME, stop.agreed
    )
    optimizer = build_optimizer(config.optimizer, strategy.model)
    directory, how, told = request.run / CHECKPOINTS_NAME, config.checkpoint, partial(_tell, log, stop)
    checkpoints = Checkpoints(directory, how.keep, prepared.identity, asynchronous=how.asynchronous, report=told)
    progress = _resume(prepared, checkpoints, strategy, optimizer, log)
    ranks = strategy.dp_rank, prepared.layout.dp_size
    reader = ChunkReader(prepared.view, config, *ranks, device, prepared.validation)
    dtype = PRECISIONS[config.training.precision] or torch.float32
    flops = flops_per_token(config.model, config.data.sequence_length)
    parts = Parts(
        config=config,
        strategy=strategy,
        optimizer=optimizer,
        reader=reader,
        checkpoints=checkpoints,
        log=log,
        stop=stop,
        heartbeat=heartbeat,
        own_work=OwnWork(chain(*(p.blocks.values() for p in strategy.parts)), config.model.num_hidden_layers, device),
        spikes=Spikes(config.recovery.spike_score, gather(log.recent(WINDOW))[0]),
        provenance=Provenance(request.tokens, prepared.index),
        least_token_s=flops / sum(gather(measured_peak_flops(device, dtype))),
    )
    where = {"step": progress.step, "layout": str(layout), "dataset": prepared.index.fingerprint[:12]}
    log.event("start", **where, **strategy.facts(), **({"restarts": restarts()} if restarts() else {}))
    if trials:
        log.event("microbatch", chosen=fastest(trials).microbatch, step_s={t.microbatch: t.step_s for t in trials})
    if changed:
        log.event("changed", step=progress.step, changes=changed)
    if problem := why_not_annealed(config, prepared.last_step):
        log.event("warning", problem=problem)
    _expect_end(prepared, stop, log, is_first=restarts() == 0)
    try:
        with profiled(request.run, rank(), request.profile, request.memory_snapshot) as log.on_step:
            if is_owed(config, reader, log, progress.step):
                heartbeat.beat(progress.step, VALIDATE)
                log.complete(validation_record(strategy, reader, stop.agreed))
            progress = train(parts, progress, prepared.last_step)
    finally:
        reader.close()
        checkpoints.close()
    _end(prepared, parts, progress)
    return progress


def _tell(log: RunLog, stop: StopRequest, name: str, **details: Any) -> None:
    """Write down what became of a checkpoint; how long a save takes counts when the job nears its end."""
    if name == "save":
        stop.pace.saved(details["save_s"])
    log.event(name, **details)


def _end(prepared: Prepared, parts: Parts, progress: Progress) -> None:
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
        plot_losses(run)


def _expect_end(prepared: Prepared, stop: StopRequest, log: RunLog, is_first: bool) -> None:
    """Find out when the job ends, and write down that the run is going on.

    Raises: UserError, on every rank, if a run that was not just restarted could not do and save a single step.
    """
    config, run = prepared.config, prepared.request.run
    stop.pace = Pace(guessed_save_s(num_parameters(config.model)))
    if rank() == 0:
        try:
            end = job_end(prepared.request.deadline, os.environ)
        except UserError as error:  # a container, say, that the commands of the batch system are not in
            log.event("warning", problem=str(error))
            end = None
        if end is not None:
            end_s = time.monotonic() + end.at_s - time.time()
            stop.deadline = Deadline(end_s, config.recovery.deadline_margin_s, end.source)
            log.event("deadline", end=str(end), left_s=round(end.at_s - time.time(), 1))
        write_state(run, "running", newest_step(run / CHECKPOINTS_NAME), "")
    problem = gather(stop.too_late())[0]
    if problem and is_first:
        raise UserError(problem)


@contextmanager
def _failure_told(run: Path) -> Iterator[None]:
    """What ends the block early is written down as why the run failed, unless it is a rank that is to start again."""
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:  # torch's CheckpointException is no Exception
        if rank() == 0:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            write_state(run, "failed", newest_step(run / CHECKPOINTS_NAME), reason)
        raise


def _claim(prepared: Prepared, stack: ExitStack) -> str | None:
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
    write_file(request.run / TOKENIZER_NAME, [read_bytes(request.tokens / TOKENIZER_NAME)])
    return None


def _resume(
    prepared: Prepared, checkpoints: Checkpoints, strategy: Strategy, optimizer: Optimizer, log: RunLog
) -> Progress:
    """Load the newest valid checkpoint, if there is one; forget the steps after it.

    Raises: FormatError if there are checkpoints, but none is valid or it is of something else.
    """
    path = checkpoints.recover()
    progress = (
        checkpoints.load(path, strategy.model, optimizer) if path else Progress(0, prepared.order.cursor(0), 0, "")
    )
    log.rewind(progress.step)
    return skip_again(log.directory, progress, prepared.config.data.sequence_length)
