"""One optimizer step: the global batch at the cursor, its gradient, and the update, if the gradient is finite."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from shared.errors import UserError
from train.checkpoint import Progress
from train.collective import gather_rows, step_seed
from train.data import Batch, chain_digest
from train.gradient import Gradient, why_not_finite
from train.optim import set_learning_rates
from train.parts import Parts
from train.patience import AGREE, COMPUTE, FETCH, OPTIMIZE
from train.schedule import learning_rates


def take_step(parts: Parts, progress: Progress) -> tuple[Progress, dict[str, Any]]:
    """Train on the global batch at the cursor: where the run is then, and the step's record.

    A gradient that is not finite is worked out once more, from the same batch and the same random numbers. If it is
    not finite then either, the step is skipped: weights and optimizer stay, the cursor moves on.

    Raises: UserError if more steps were skipped than the recipe puts up with.
    """
    began = time.perf_counter()
    config, order = parts.config, parts.reader.order
    position, beat = order.position(progress.cursor), partial(parts.heartbeat.beat, progress.step + 1)
    beat(FETCH)
    batch, data_wait_s = parts.reader.fetch(position)
    rates = learning_rates(config.optimizer, config.total_steps, progress.step)
    set_learning_rates(parts.optimizer, rates)

    gradient = _gradient(parts, progress, batch)
    if not gradient.is_finite:
        gradient = _once_more(parts, progress, batch, gradient)
    beat(OPTIMIZE)
    if gradient.is_finite:
        parts.optimizer.step()
    parts.optimizer.zero_grad()
    beat(AGREE)

    num_tokens = batch.num_targets if gradient.is_finite else 0
    progress = replace(
        progress,
        step=progress.step + 1,
        cursor=order.cursor(position + config.data.global_batch),
        tokens=progress.tokens + num_tokens,
        skipped=progress.skipped + (not gradient.is_finite),
        data_digest=chain_digest(progress.data_digest, gather_rows(batch.row_digests, parts.strategy.dp_group)),
    )
    parts.heartbeat.own_work = parts.own_work.of_step(data_wait_s)
    step_s = time.perf_counter() - began
    return progress, {
        "step": progress.step,
        **_learned(gradient),
        **rates,
        "tokens": progress.tokens,
        "skipped": progress.skipped,
        "tokens_per_s": batch.num_targets / step_s,
        "step_s": step_s,
        "data_wait_s": data_wait_s,
        "mfu": batch.num_targets * parts.least_token_s / step_s,
        **(parts.strategy.step_metrics() | progress.cursor._asdict()),
        "data_digest": progress.data_digest,
    }


def _learned(gradient: Gradient) -> dict[str, Any]:
    """Of the step's record what is not there if the step is skipped."""
    if not gradient.is_finite:
        return {"loss": None, "grad_norm": None}
    return {"loss": gradient.loss, **gradient.source_losses, "grad_norm": gradient.norm}


def _gradient(parts: Parts, progress: Progress, batch: Batch) -> Gradient:
    """The step's gradient is in the parameters."""
    parts.heartbeat.beat(progress.step + 1, COMPUTE)
    torch.manual_seed(step_seed(parts.config.training.seed, progress.step))
    parts.source_losses.begin()
    loss = parts.backoff.forward_backward(progress.step + 1, batch)
    norm = parts.strategy.clip_grad_norm(parts.config.optimizer.max_grad_norm)
    parts.heartbeat.beat(progress.step + 1, AGREE)
    of_sources = parts.source_losses.sums(parts.reader.order.position(progress.cursor), batch)
    told = torch.cat((torch.stack((loss, norm)), of_sources)).tolist()  # the step's one wait for the device
    return Gradient(told[0], told[1], parts.source_losses.means(told[2:]))


def _once_more(parts: Parts, progress: Progress, batch: Batch, first: Gradient) -> Gradient:
    """The gradient of the same batch again; what the two say of its cause is an event."""
    parts.optimizer.zero_grad()
    again = _gradient(parts, progress, batch)
    step, most = progress.step + 1, parts.config.recovery.max_skipped_steps
    cause = why_not_finite(first, again)
    found = f"step {step}: {first}, worked out again {again}, so the cause is {cause}"
    if again.is_finite:
        done = "the second is used"
    elif progress.skipped < most:
        done = f"skipped, the {progress.skipped + 1}. of at most {most}"
    else:
        done = f"recovery.max_skipped_steps is {most}, and {progress.skipped} steps were skipped before"
    parts.log.event(
        "bad-step",
        problem=f"{found}: {done}",
        step=step,
        cause=cause,
        skipped=not again.is_finite,
        documents=parts.provenance.documents(parts.reader.spans(parts.reader.order.position(progress.cursor))),
    )
    if not again.is_finite and progress.skipped >= most:
        raise UserError(
            f"{found}: {done}; lower optimizer.learning_rate, or look at the documents in events.jsonl, then start "
            "again: the newest checkpoint is used"
        )
    return again
