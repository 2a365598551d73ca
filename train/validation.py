"""Loss on the chunks that a recipe reserves: pure next-token cross entropy, nothing is trained."""

import torch

from train.data import ChunkReader
from train.strategy import Strategy


def validation_loss(strategy: Strategy, reader: ChunkReader, device: torch.device) -> float | None:
    """Mean loss over the targets of the held-out chunks, the same on every rank; None if there are none."""
    total, num_targets = 0.0, 0
    for position in range(0, reader.order.num_held_out, reader.global_batch):
        batch = reader.held_out(position, device)
        total += strategy.evaluate(batch).item() * batch.num_targets
        num_targets += batch.num_targets
    return total / num_targets if num_targets else None
