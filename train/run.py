"""The only wiring: builds the parts of a run on this rank and hands them to the loop."""

import os
from contextlib import ExitStack
from itertools import chain

import torch
import torch.distributed as dist
from torch.optim import Optimizer

from shared.allocator import keep_freed_memory
from shared.directories import make_directory
from shared.errors import UserError
from shared.files import read_bytes
from shared.format import TOKENIZER_NAME
from shared.locks import exclusive
from shared.storage import write_file, write_sealed
from train.checkpoint import Checkpoints, Progress
from train.collective import gather, rank
from train.data import ChunkReader
from train.heartbeat import Heartbeat
from train.joining import join
from train.layout import flops_per_token
from train.loop import train
from train.metrics import RunLog, measured_peak_flops
from train.microbatch import MICROBATCH_NAME, choose_microbatch, fastest
from train.optim import build_optimizer
from train.parts import Parts
from train.preflight import CHECKPOINTS_NAME, RUN_NAME, Prepared, RunRequest, changes, prepare, versions
from train.profiling import profiled
from train.provenance import Provenance
from train.recovery import StopRequest
from train.report import plot_losses
from train.rollback import skip_again
from train.schedule import why_not_annealed
from train.spikes import WINDOW, Spikes
from train.stragglers import OwnWork
from train.strategy import PRECISIONS, Strategy, build_strategy
from train.watchdog import clear_heartbeats, outwait_watchdog, watching

LARGEST_KEPT_BYTES = 1 << 30  # activations and gradients on a CPU: a step needs again what the last one had


def run(request: RunRequest) -> None:
    """Start or continue a run as one rank of a torchrun job.

    Raises: UserError for what `prepare` finds, on every rank alike.
    """
    stop = StopRequest()
    keep_freed_memory(LARGEST_KEPT_BYTES)
    prepared = prepare(request, int(os.environ["WORLD_SIZE"]))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        join("cpu:gloo,cuda:nccl")
    else:
        device = torch.device("cpu")
        join("gloo")
    execute(prepared, device, stop)
    dist.destroy_process_group()  # not after an error: it may wait for ranks that are gone


def execute(prepared: Prepared, device: torch.device, stop: StopRequest) -> Progress:
    """Train from the newest valid checkpoint, or from nothing, to the last step asked for; return where the run is."""
    with ExitStack() as stack:
        changed = [*changes(prepared).values()]
        problem = gather(_claim(prepared, stack) if rank() == 0 else None)[0]
        if problem:
            raise UserError(problem)
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
    layout, trials = choose_microbatch(strategy, config, prepared.layout, device, request.run / MICROBATCH_NAME)
    optimizer = build_optimizer(config.optimizer, strategy.model)
    checkpoints = Checkpoints(
        request.run / CHECKPOINTS_NAME,
        config.checkpoint.keep,
        prepared.identity,
        asynchronous=config.checkpoint.asynchronous,
        report=log.event,
    )
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
    log.event("start", **where, **strategy.facts())
    if trials:
        log.event("microbatch", chosen=fastest(trials).microbatch, step_s={t.microbatch: t.step_s for t in trials})
    if changed:
        log.event("changed", step=progress.step, changes=changed)
    if problem := why_not_annealed(config, prepared.last_step):
        log.event("warning", problem=problem)
    try:
        with profiled(request.run, rank(), request.profile, request.memory_snapshot) as log.on_step:
            progress = train(parts, progress, prepared.last_step)
    finally:
        reader.close()
        checkpoints.close()
    ended = "finished" if progress.step == config.total_steps else "stopped"
    log.event(ended, step=progress.step, tokens=progress.tokens, data_digest=progress.data_digest)
    log.flush()
    if rank() == 0 and progress.step > 0:
        plot_losses(request.run)
    return progress


def _claim(prepared: Prepared, stack: ExitStack) -> str | None:
    """Hold the run's directory until `stack` ends and write down what the run is; what went wrong, or None."""
    request = prepared.request
    make_directory(request.run)
    try:
        stack.enter_context(exclusive(request.run, "run"))
    except UserError as error:
        return str(error)
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
