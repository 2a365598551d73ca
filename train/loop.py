"""The training loop. It does not know which strategy it drives, and it holds no state but `Progress`."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from train.checkpoint import Checkpoints, Progress
from train.collective import gather_rows, step_seed
from train.config import RunConfig
from train.data import ChunkReader, chain_digest
from train.metrics import RunLog
from train.optim import set_learning_rates
from train.recovery import StopRequest, require_finite
from train.schedule import learning_rates
from train.strategy import Strategy
from train.validation import is_validated, validation_record


@dataclass(frozen=True)
class Parts:
    """What run.py wires together."""

    config: RunConfig
    strategy: Strategy
    optimizer: Optimizer
    reader: ChunkReader
    checkpoints: Checkpoints
    log: RunLog
    stop: StopRequest
    least_token_s: float  # what a token would take if all ranks did nothing but multiply, at their measured peak


def train(parts: Parts, progress: Progress, last_step: int) -> Progress:
    """Train until `last_step` steps are done or a signal asks to stop; what was reached is saved.

    Raises: UserError before the optimizer moves if the loss or the gradient is not finite.
    """
    config, saved_step = parts.config, progress.step
    while progress.step < last_step and not parts.stop.agreed():
        progress, record = _step(parts, progress)
        parts.stop.pace.stepped(record["step_s"])
        if is_validated(config, progress.step):
            record |= validation_record(parts.strategy, parts.reader, parts.stop.agreed)
        parts.log.step(record, is_last=progress.step == last_step)
        if config.checkpoint.every is not None and progress.step % config.checkpoint.every == 0:
            saved_step = _save(parts, progress)
    if progress.step > saved_step:
        _save(parts, progress)
    return progress


def _save(parts: Parts, progress: Progress) -> int:
    began = time.monotonic()
    path = parts.checkpoints.save(parts.strategy.model, parts.optimizer, progress)
    parts.stop.pace.saved(time.monotonic() - began)
    parts.log.event("save", step=progress.step, path=str(path))
    return progress.step


def _step(parts: Parts, progress: Progress) -> tuple[Progress, dict[str, Any]]:
    """One optimizer step on the global batch at the cursor: where the run is then, and the step's record."""
    began = time.perf_counter()
    config, strategy, order = parts.config, parts.strategy, parts.reader.order
    position = order.position(progress.cursor)
    batch, data_wait_s = parts.reader.fetch(position)
    rates = learning_rates(config.optimizer, config.total_steps, progress.step)
    set_learning_rates(parts.optimizer, rates)
    torch.manual_seed(step_seed(config.training.seed, progress.step))

    loss = strategy.forward_backward(batch)
    grad_norm = strategy.clip_grad_norm(config.optimizer.max_grad_norm)
    loss_value, norm_value = torch.stack((loss, grad_norm)).tolist()  # the step's one wait for the device
    require_finite(progress.step + 1, loss_value, norm_value)
    parts.optimizer.step()
    parts.optimizer.zero_grad()

    progress = Progress(
        progress.step + 1,
        order.cursor(position + config.data.global_batch),
        progress.tokens + batch.num_targets,
        chain_digest(progress.data_digest, gather_rows(batch.row_digests, strategy.dp_group)),
    )
    step_s = time.perf_counter() - began
    return progress, {
        "step": progress.step,
        "loss": loss_value,
        "grad_norm": norm_value,
        **rates,
        "tokens": progress.tokens,
        "tokens_per_s": batch.num_targets / step_s,
        "step_s": step_s,
        "data_wait_s": data_wait_s,
        "mfu": batch.num_targets * parts.least_token_s / step_s,
        **(strategy.step_metrics() | progress.cursor._asdict()),
        "data_digest": progress.data_digest,
    }
