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

    Empty too if the run is asked to stop before the last of them: it is made up for when the run goes on.
    """
    began, total, num_targets = time.perf_counter(), 0.0, 0
    for position in range(0, reader.num_held_out, reader.global_batch):
        if is_asked_to_stop():
            return {}
        batch = reader.held_out(position)
        total += backoff.evaluate(batch).item() * batch.num_targets
        num_targets += batch.num_targets
    if not num_targets:
        return {}
    return {"validation_loss": total / num_targets, "validation_s": time.perf_counter() - began}


def is_owed(config: RunConfig, reader: ChunkReader, log: RunLog, step: int) -> bool:
    """Whether a run that is at `step` was stopped before the validation loss of that step was there, on every rank."""
    return reader.num_held_out > 0 and is_validated(config, step) and any_rank(log.lacks("validation_loss", step))
