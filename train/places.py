"""What a rank reads at each position, worked out for many at once, and asked of the disk well before it is needed.

All that is kept here could be worked out again: nothing of it is part of where a run is.
"""

import resource
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from shared.cursor import Chunks
from shared.mixed_order import Order
from train.sequences import Sequences
from train.views import View

WINDOW = 1 << 14  # positions; a permutation of one takes as long as one of hundreds
BLOCKS_AHEAD = 2
PATIENCE = 64  # blocks for which pages are asked for after some were missing


class Places:
    """The chunks of a view in the order in which one rank reads its share of every global batch."""

    def __init__(
        self,
        view: View,
        order: Order,
        chunks_at: Callable[[range], Chunks],
        global_batch: int,
        share: range,
        end: int | None = None,
    ) -> None:
        """There are no positions from `end` on; None: a new epoch begins for ever."""
        self.view = view
        self._order, self._chunks_at = order, chunks_at
        self._shape, self._share = (-1, global_batch), slice(share.start, share.stop)
        self._end = end
        self._window, self._located = range(0), np.empty((2, 0), np.int64)
        self._patience, self._asked_to = BLOCKS_AHEAD, 0  # the first pages are hardly ever there

    def num_targets(self, positions: range) -> list[int]:
        """Real targets of each global batch at `positions`, over all ranks."""
        num_targets = self.view.num_targets(*self._locate(positions)).reshape(self._shape)
        return [int(total) for total in num_targets.sum(axis=1)]

    def read(self, positions: range) -> Sequences:
        """This rank's sequences of the global batches at `positions`.

        Where pages were missing just now, those of the next blocks are asked for: it costs more than a warm read.
        """
        if self._patience:
            self._patience -= 1
            self._ask(positions)
        before = _missing_pages()
        sequences = self.view.read(*self._mine(positions))
        if _missing_pages() > before:
            self._patience = PATIENCE
        return sequences

    def _ask(self, positions: range) -> None:
        """Have the system read what these positions and the next blocks need, but for what it was asked already."""
        stop = positions.start + (1 + BLOCKS_AHEAD) * len(positions)
        stop = stop if self._end is None else min(stop, self._end)
        start = self._asked_to if positions.start <= self._asked_to <= stop else positions.start
        self._asked_to = stop
        if start < stop:
            self.view.will_need(*self._mine(range(start, stop)))

    def _mine(self, positions: range) -> list[Chunks]:
        return [places.reshape(self._shape)[:, self._share].reshape(-1) for places in self._locate(positions)]

    def _locate(self, positions: range) -> npt.NDArray[np.int64]:
        """(2, positions): shard and offset of each."""
        if positions.start not in self._window or positions.stop > self._window.stop:
            size = max(len(positions), min(WINDOW, self._order.num_training))
            self._window = range(positions.start, positions.start + size)
            self._located = np.stack(self._order.locate(self._chunks_at(self._window)))
        first = positions.start - self._window.start
        return self._located[:, first : first + len(positions)]


def _missing_pages() -> int:
    """How often this process has had to wait for a page from the disk."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt
