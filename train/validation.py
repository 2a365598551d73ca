"""Loss on chunks that are never trained on: pure next-token cross entropy, nothing is trained."""

import time
from collections.abc import Callable

from train.backoff import Backoff
from train.collective import any_rank
from train.config import RunConfig
from train.data import ChunkReader
from train.metrics import RunLog


def is_validated(config: RunConfig, step: int) -> bool:
    """Whether there is a validation loss after `step` steps."""
    every = config.training.validate_every
    return step > 0 and (step == config.total_steps or (every is not None and step % every == 0))


def validation_record(backoff: Backoff, reader: ChunkReader, is_asked_to_stop: Callable[[], bool]) -> dict[str, float]:
    """Mean loss over the targets of the held-out chunks, the same on every rank, and seconds; empty if there are none.

    Of several sources the loss of each, and their mean by weight: that of the mixture which is trained on.
    Empty too if the run is asked to stop before the last of them: it is made up for when the run goes on.
    """
    began, sources = time.perf_counter(), reader.sources
    size = reader.num_held_out // max(len(sources), 1)  # each source's are whole global batches
    losses = list[float]()
    for first in range(0, reader.num_held_out, size or 1):
        loss = _mean_loss(backoff, reader, range(first, first + size, reader.global_batch), is_asked_to_stop)
        if loss is None:
            return {}
        losses.append(loss)
    if not losses:
        return {}
    weights = [source.weight for source in sources] or [1.0]
    mean = sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / sum(weights)
    each = {f"validation_loss_{source.name}": loss for source, loss in zip(sources, losses, strict=False)}
    return {"validation_loss": mean, **each, "validation_s": time.perf_counter() - began}


def _mean_loss(
    backoff: Backoff, reader: ChunkReader, positions: range, is_asked_to_stop: Callable[[], bool]
) -> float | None:
    """Over the targets of the global batches at some positions of the validation range; None if asked to stop."""
    total, num_targets = 0.0, 0
    for position in positions:
        if is_asked_to_stop():
            return None
        batch = reader.held_out(position)
        total += backoff.evaluate(batch).item() * batch.num_targets
        num_targets += batch.num_targets
    return total / num_targets


def is_owed(config: RunConfig, reader: ChunkReader, log: RunLog, step: int) -> bool:
    """Whether a run that is at `step` was stopped before the validation loss of that step was there, on every rank."""
    return reader.num_held_out > 0 and is_validated(config, step) and any_rank(log.lacks("validation_loss", step))
