"""Token dataset -> batches. A batch is a pure function of a view of the dataset, the reading order and a position.

What is prefetched is a guess at the next call; it may be thrown away at any time.

Legend: B sequences, T positions.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.cursor import Chunks, ReadingOrder, rank_positions
from train.config import RunConfig
from train.views import DIGEST_BYTES, View


@dataclass(frozen=True)
class Batch:
    """One data-parallel rank's sequences of a global batch."""

    inputs_BT: Tensor
    targets_BT: Tensor
    """The id after each input, or IGNORED where there is none."""
    num_targets: int
    """Real targets of the global batch, over all ranks."""
    row_digests: npt.NDArray[np.uint8]
    """(B, DIGEST_BYTES): a hash of all that is in each sequence."""
    starts_BT: Tensor | None = None
    """int32: the first position of the document that each position is in; None where documents are not told apart.

    It is all that a mask needs: a position may look at those from there to itself. Padding is a document of its own.
    """

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        starts_BT = None if self.starts_BT is None else self.starts_BT.to(device)
        return replace(
            self, inputs_BT=self.inputs_BT.to(device), targets_BT=self.targets_BT.to(device), starts_BT=starts_BT
        )

    def split(self, pieces: int) -> Iterator["Batch"]:
        """Each microbatch; `num_targets` stays that of the global batch."""
        size = len(self.inputs_BT) // pieces
        assert size * pieces == len(self.inputs_BT), "the layout divides a batch evenly"
        for start in range(0, len(self.inputs_BT), size):
            rows = slice(start, start + size)
            yield replace(
                self,
                inputs_BT=self.inputs_BT[rows],
                targets_BT=self.targets_BT[rows],
                row_digests=self.row_digests[rows],
                starts_BT=None if self.starts_BT is None else self.starts_BT[rows],
            )


class ChunkReader:
    """Serves the batch at any position; reads the next one ahead."""

    def __init__(
        self,
        view: View,
        config: RunConfig,
        dp_rank: int,
        dp_size: int,
        device: torch.device,
        validation: View | None = None,
    ) -> None:
        self.device = device
        self.order = reading_order(view, config)
        self.num_held_out = config.data.validation_chunks
        self._held_out = self.order if validation is None else ReadingOrder(validation.shard_chunks, self.num_held_out)
        self._validation = view if validation is None else validation
        self.global_batch = config.data.global_batch
        self.dp_rank, self.dp_size = dp_rank, dp_size
        self._view = view
        self._ahead: tuple[int, Future[Batch]] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")

    def fetch(self, position: int) -> tuple[Batch, float]:
        """This rank's part of the global batch at `position`, and the seconds that were spent waiting for it."""
        began = time.perf_counter()
        future = self._ahead[1] if self._ahead and self._ahead[0] == position else self._read_ahead(position)
        batch = future.result()
        self._ahead = (position + self.global_batch, self._read_ahead(position + self.global_batch))
        waited = time.perf_counter() - began
        return batch.to(self.device), waited

    def held_out(self, position: int) -> Batch:
        """This rank's part of the global batch at `position` of the validation range."""
        return self._read(position, self._validation, self._held_out, self._held_out.held_out).to(self.device)

    def close(self) -> None:
        """End the thread that reads ahead."""
        self._thread.shutdown(cancel_futures=True)

    def _read_ahead(self, position: int) -> Future[Batch]:
        return self._thread.submit(self._read, position, self._view, self.order, self.order.chunks)

    def _read(self, position: int, view: View, order: ReadingOrder, chunks_at: Callable[[range], Chunks]) -> Batch:
        everywhere = chunks_at(rank_positions(position, self.global_batch, 0, 1))
        mine = chunks_at(rank_positions(position, self.global_batch, self.dp_rank, self.dp_size))
        sequences = view.read(*order.locate(mine))
        starts = sequences.starts_BT
        return Batch(
            torch.from_numpy(sequences.inputs_BT),
            torch.from_numpy(sequences.targets_BT),
            view.num_targets(*order.locate(everywhere)),
            sequences.row_digests,
            None if starts is None else torch.from_numpy(starts),
        )


def reading_order(view: View, config: RunConfig) -> ReadingOrder:
    """The order in which `config` reads the chunks of `view`."""
    seed = config.training.seed if config.data.order == "shuffled" else None
    reserved = config.data.validation_chunks if config.data.validation == "reserved" else 0
    return ReadingOrder(view.shard_chunks, reserved, seed)


def chain_digest(digest: str, row_digests: npt.NDArray[np.uint8]) -> str:
    """The digest of all data up to and with these sequences, given that of the data before them.

    >>> rows = np.zeros((2, 16), np.uint8)
    >>> chain_digest("", rows) == chain_digest("", rows[::-1]), chain_digest("", rows) == chain_digest("x", rows)
    (True, False)
    """
    chained = hashlib.blake2b(digest.encode() + row_digests.tobytes(), digest_size=DIGEST_BYTES)
    return chained.hexdigest()
