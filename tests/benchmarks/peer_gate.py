"""What every trainer that is compared has in common: one shape, one batch, and a gate that lets one step through.

The trainers are the peers' own loops, which cannot be called for a step. So each is stopped where a step of it begins
until the driver says go; from there to where its next step begins, everything that its loop does is done once.
"""

import os
import sys

import torch

DIM, LAYERS, HEADS, FEED_FORWARD, VOCAB, LENGTH, BATCH = 384, 6, 6, 1024, 16384, 512, 4
NUM_PARAMETERS = 2 * VOCAB * DIM + LAYERS * (4 * DIM**2 + 3 * DIM * FEED_FORWARD + 2 * DIM) + DIM
LEARNING_RATE, MAX_GRAD_NORM = 3e-4, 1.0


class Gate:
    """Held by a trainer's process; standard output is the gate's alone, all else that is printed goes to the errors."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def check(self, model: torch.nn.Module) -> None:
        """Ends the process if the model is not the size that all have."""
        found = sum(parameter.numel() for parameter in model.parameters())
        if found != NUM_PARAMETERS:
            sys.exit(f"the model has {found:,} parameters, all others {NUM_PARAMETERS:,}")

    def wait(self) -> None:
        """Tell the driver that a step could begin, and wait for its word; without a driver the process ends."""
        print("ready", file=self._answers, flush=True)
        if not sys.stdin.readline():
            os._exit(0)


def some_sequences(count: int = BATCH) -> torch.Tensor:
    """(count, LENGTH + 1) random ids, the same for every peer."""
    return torch.randint(0, VOCAB, (count, LENGTH + 1), generator=torch.Generator().manual_seed(0))
