"""The only wiring: builds the parts of a run on this rank and hands them to the loop."""

import os
import sys
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from shared.allocator import keep_freed_memory
from shared.errors import UserError
from train.backoff import Backoff
from train.beginning import load_beginning
from train.checkpoint import Checkpoints, Progress
from train.checkpoint_directory import newest_step
from train.collective import gather, leave, rank
from train.console import console
from train.continuing import changes
from train.data import ChunkReader
from train.findings import MICROBATCH_NAME, Findings
from train.heartbeat import Heartbeat
from train.history import told_at_start
from train.joining import join
from train.layout import flops_per_token
from train.lifecycle import claim, expect_end, failure_told, restarts, tell_end, told_of_process
from train.loggers import Loggers
from train.loop import train
from train.memory_errors import RankOutOfMemory
from train.metrics import RunLog, measured_peak_flops
from train.microbatch import choose_microbatch
from train.optim import build_optimizer, create_state
from train.outcome import OUT_OF_MEMORY, nothing_to_do
from train.outlook import Outlook
from train.parts import Parts
from train.passes import many_passes, passes_at_end
from train.patience import VALIDATE
from train.preflight import Prepared, prepare
from train.profiling import profiled
from train.provenance import Provenance
from train.recovery import StopRequest
from train.request import RunRequest
from train.rollback import skip_again
from train.run_files import CHECKPOINTS_NAME
from train.schedule import why_not_annealed
from train.signals import Signals
from train.source_losses import SourceLosses
from train.spikes import WINDOW, Spikes
from train.stragglers import OwnWork
from train.strategy import PRECISIONS, Strategy, build_strategy
from train.validation import is_owed, validation_record
from train.watchdog import outwait_watchdog, watching

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
        try:
            execute(prepared, device, stop)
        except RankOutOfMemory as error:
            print(error, file=sys.stderr)
            leave(OUT_OF_MEMORY)  # at once: to take the process group down, ranks wait for each other
    elif rank() == 0:
        console(request.output, Outlook(prepared.last_step)).note(done)
    dist.destroy_process_group()  # not after an error: it may wait for ranks that are gone


def execute(prepared: Prepared, device: torch.device, stop: StopRequest) -> Progress:
    """Train from the newest valid checkpoint, or from nothing, to the last step asked for; return where the run is."""
    with ExitStack() as stack:
        changed = [*changes(prepared).values()]
        problem = gather(claim(prepared, stack) if rank() == 0 else None)[0]
        if problem:
            raise UserError(problem)
        stack.enter_context(failure_told(prepared.request.run))
        shown = console(prepared.request.output, Outlook.of(prepared.config, prepared.last_step))
        stack.callback(shown.close)
        log = RunLog(prepared.request.run, rank() == 0, shown)
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
    request = prepared.request
    parts, progress = _build(prepared, device, stop, log, heartbeat)
    config, backoff, reader = parts.config, parts.backoff, parts.reader
    _tell_start(prepared, parts, progress, changed)
    expect_end(prepared, stop, log, is_first=restarts() == 0)
    with Loggers(log, request.loggers, progress.step) as log.on_rewind:
        try:
            snapshot = profiled(request.run, rank(), request.profile, request.memory_snapshot)
            with backoff.restarting(), snapshot as log.on_step:
                if is_owed(config, reader, log, progress.step):
                    heartbeat.beat(progress.step, VALIDATE)
                    log.complete(validation_record(backoff, reader, stop.agreed))
                progress = train(parts, progress, prepared.last_step)
        finally:
            reader.close()
            parts.checkpoints.close()
        tell_end(prepared, parts, progress)  # before loggers are waited for: the job may be about to end
    return progress


def _build(
    prepared: Prepared, device: torch.device, stop: StopRequest, log: RunLog, heartbeat: Heartbeat
) -> tuple[Parts, Progress]:
    """The parts of the run, and where it goes on; its weights and optimizer are filled."""
    config = prepared.config
    strategy = _strategy(prepared, device, log)
    optimizer = build_optimizer(config.optimizer, strategy.model)
    backoff = _fit(prepared, strategy, optimizer, device, log, stop)
    checkpoints = _checkpoints(prepared, log, stop)
    progress = _resume(prepared, checkpoints, strategy, optimizer, log)
    ranks = strategy.dp_rank, prepared.layout.dp_size
    reader = ChunkReader(prepared.view, config, *ranks, device, prepared.validation, prepared.starts)
    dtype = PRECISIONS[config.training.precision] or torch.float32
    flops = flops_per_token(config.model, config.data.sequence_length)
    return Parts(
        config=config,
        strategy=strategy,
        backoff=backoff,
        optimizer=optimizer,
        reader=reader,
        checkpoints=checkpoints,
        log=log,
        stop=stop,
        heartbeat=heartbeat,
        own_work=OwnWork(chain(*(p.blocks.values() for p in strategy.parts)), config.model.num_hidden_layers, device),
        source_losses=SourceLosses(reader, strategy),
        spikes=Spikes(config.recovery.spike_score, gather(log.recent(WINDOW))[0]),
        provenance=Provenance(prepared.datasets),
        least_token_s=flops / sum(gather(measured_peak_flops(device, dtype))),
    ), progress


def _checkpoints(prepared: Prepared, log: RunLog, stop: StopRequest) -> Checkpoints:
    """Those of the run, kept and saved as its recipe says."""
    directory, how = prepared.request.run / CHECKPOINTS_NAME, prepared.config.checkpoint
    told, begin = partial(_tell, log, stop), prepared.first
    return Checkpoints(directory, how.keep, prepared.identity, asynchronous=how.asynchronous, report=told, begin=begin)


def _tell_start(prepared: Prepared, parts: Parts, progress: Progress, changed: list[str]) -> None:
    """Write down what begins, where, and with what that is new or doubtful."""
    strategy, log = parts.strategy, parts.log
    where = {"step": progress.step, "layout": str(strategy.layout), "dataset": prepared.index.fingerprint[:12]}
    where |= told_of_process() | log.undone
    reads = told_at_start(prepared.request.tokens, strategy.config, strategy.layout, progress.cursor)
    repeated = {"restarts": restarts()} if restarts() else {}
    log.event("start", **where, **strategy.facts(), **repeated, reads=reads)
    if found := parts.backoff.findings.found.told():
        log.event("microbatch", chosen=strategy.config.microbatch, **found)
    if changed:
        log.event("changed", step=progress.step, changes=changed)
    if problem := why_not_annealed(prepared.config, prepared.last_step):
        log.event("warning", problem=problem)
    for problem in many_passes(passes_at_end(prepared.config, prepared.order, prepared.request.run / CHECKPOINTS_NAME)):
        log.event("warning", problem=problem)


def _strategy(prepared: Prepared, device: torch.device, log: RunLog) -> Strategy:
    """The strategy that the recipe names: it tells what cannot be compiled, and waits for longer than the watchdogs."""
    strategy = build_strategy(prepared.config, prepared.layout, device)
    if prepared.config.recovery.hang_timeout_s is not None:
        outwait_watchdog()
    for part in strategy.parts:
        if part.compilation is not None:
            part.compilation.report = lambda reason: log.tell("eager", rank=rank(), reason=reason)
    return strategy


def _tell(log: RunLog, stop: StopRequest, name: str, **details: Any) -> None:
    """Write down what became of a checkpoint; how long a save takes counts when the job nears its end."""
    if name == "save":
        stop.pace.saved(details["save_s"])
    log.event(name, **details)


def _fit(
    prepared: Prepared,
    strategy: Strategy,
    optimizer: Optimizer,
    device: torch.device,
    log: RunLog,
    stop: StopRequest,
) -> Backoff:
    """Settle the microbatch, with the memory of the optimizer's state taken."""
    config, layout = prepared.config, prepared.layout
    findings = Findings(prepared.request.run / MICROBATCH_NAME, config, layout, device)
    backoff = Backoff(strategy, findings, log)
    with backoff.restarting():
        create_state(optimizer)
        choose_microbatch(strategy, config, layout, device, findings, stop.agreed)
        if not stop.agreed():
            backoff.probe(device)
    return backoff


def _resume(
    prepared: Prepared, checkpoints: Checkpoints, strategy: Strategy, optimizer: Optimizer, log: RunLog
) -> Progress:
    """Load the newest valid checkpoint, if there is one, or what the run begins from; forget the steps after it.

    Raises: FormatError if there are checkpoints, but none is valid or it is of something else.
    """
    path, beginning = checkpoints.recover(), prepared.beginning
    if path:
        progress = checkpoints.load(path, strategy.model, optimizer)
    else:
        progress = Progress(0, prepared.first, 0, beginning.data_digest if beginning else "")
        if beginning:
            load_beginning(beginning, strategy.model, optimizer)
    log.rewind(progress.step)
    return skip_again(log.directory, progress, prepared.config.data.sequence_length)
