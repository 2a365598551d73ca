"""Loss on chunks that are never trained on: pure next-token cross entropy, nothing is trained."""

from train.backoff import Backoff
from train.data import ChunkReader


def validation_record(backoff: Backoff, reader: ChunkReader) -> dict[str, float]:
    """Mean loss over the targets of the held-out chunks, the same on every rank; empty if none are held out."""
    total, num_targets = 0.0, 0
    for position in range(0, reader.num_held_out, reader.global_batch):
        batch = reader.held_out(position)
        total += backoff.evaluate(batch).item() * batch.num_targets
        num_targets += batch.num_targets
    return {"validation_loss": total / num_targets} if num_targets else {}
