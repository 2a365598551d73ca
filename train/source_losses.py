"""The loss of each source of a mixture in a training step, of the losses that its sequences had anyway.

Legend: B sequences of this rank, K sources.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from shared.cursor import rank_positions
from shared.mixed_order import MixedOrder
from train.data import Batch, ChunkReader
from train.loss import IGNORED
from train.strategy import Strategy


class SourceLosses:
    """Mean losses of a step by source, the same on every rank. With one dataset nothing is done."""

    def __init__(self, reader: ChunkReader, strategy: Strategy) -> None:
        self._names = [source.name for source in reader.sources]
        self._order, self._global_batch = reader.order, reader.global_batch
        self._share = rank_positions(0, reader.global_batch, strategy.dp_rank, strategy.layout.dp_size)
        self._last = strategy.parts[-1]
        """The only part of this rank that may make losses."""

    def begin(self) -> None:
        """Forget what was kept of the step before."""
        if self._names:
            self._last.sequence_losses = []

    def sums(self, position: int, batch: Batch) -> Tensor:
        """(2 K): the losses of each source in the global batch at `position`, added up, and how many they are.

        It stays on the device: nothing waits for it. Every rank must call it.
        """
        device = batch.targets_BT.device
        if not isinstance(self._order, MixedOrder):
            return torch.empty(0, device=device)
        sums_K2 = torch.zeros(len(self._names), 2, dtype=torch.float64, device=device)
        if self._last.sequence_losses:
            kept_B = torch.cat(self._last.sequence_losses)[-len(batch.targets_BT) :]  # before: of tries that failed
            told_B2 = torch.stack((kept_B, (batch.targets_BT != IGNORED).sum(1)), 1).double()
            sources = self._order.sources(range(position, position + self._global_batch))
            is_of_KB = np.arange(len(self._names))[:, None] == sources[self._share.start : self._share.stop]
            sums_K2 = torch.from_numpy(is_of_KB).to(device).double() @ told_B2
        if dist.is_initialized():
            dist.all_reduce(sums_K2)
        return sums_K2.flatten()

    def means(self, sums: Sequence[float]) -> dict[str, float]:
        """`loss_NAME` of each source that had a target, of what `sums` gives."""
        told = zip(self._names, sums[::2], sums[1::2], strict=True)
        return {f"loss_{name}": total / count for name, total, count in told if count}
