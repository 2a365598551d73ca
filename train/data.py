"""Token dataset -> batches. A batch is a pure function of the index, the reading order and a position.

The label shift is made here and nowhere else: a chunk of L + 1 ids gives L inputs and the L ids that follow them.
What is prefetched is a guess at the next call; it may be thrown away at any time.

Legend: B sequences, T positions.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.cursor import ReadingOrder, rank_positions
from shared.format import Index, open_tokens
from train.config import RunConfig
from train.model import IGNORED

OPEN_SHARDS = 256  # maps kept open: each holds a file descriptor
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Batch:
    """One data-parallel rank's sequences of a global batch."""

    inputs_BT: Tensor
    targets_BT: Tensor
    """The id after each input, or IGNORED where there is none."""
    num_targets: int
    """Real targets of the global batch, over all ranks."""
    row_digests: npt.NDArray[np.uint8]
    """(B, DIGEST_BYTES): a hash of each sequence's ids."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its ids on `device`."""
        return replace(self, inputs_BT=self.inputs_BT.to(device), targets_BT=self.targets_BT.to(device))

    def split(self, pieces: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of each microbatch."""
        return zip(self.inputs_BT.chunk(pieces), self.targets_BT.chunk(pieces), strict=True)


class ChunkReader:
    """Serves the batch at any position; reads the next one ahead."""

    def __init__(
        self, tokens: Path, index: Index, config: RunConfig, dp_rank: int, dp_size: int, device: torch.device
    ) -> None:
        self.device = device
        self.order = reading_order(index, config)
        self.global_batch = config.data.global_batch
        self.dp_rank, self.dp_size = dp_rank, dp_size
        self._padding = index.tokenizer.end_of_document_id
        self._num_tokens = index.shard_tokens()
        self._open = lru_cache(maxsize=OPEN_SHARDS)(lambda shard: open_tokens(tokens, index, shard))
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
        return self._read(position, self.order.held_out).to(self.device)

    def close(self) -> None:
        """End the thread that reads ahead."""
        self._thread.shutdown(cancel_futures=True)

    def _read_ahead(self, position: int) -> Future[Batch]:
        return self._thread.submit(self._read, position, self.order.chunks)

    def _read(self, position: int, chunks_at: Callable[[range], npt.NDArray[np.int64]]) -> Batch:
        everywhere = chunks_at(rank_positions(position, self.global_batch, 0, 1))
        mine = chunks_at(rank_positions(position, self.global_batch, self.dp_rank, self.dp_size))
        rows, targets = self._rows(mine)
        return Batch(
            torch.from_numpy(rows[:, :-1].astype(np.int64)),
            torch.from_numpy(targets),
            int(self.order.num_targets(everywhere).sum()),
            np.stack([_row_digest(row) for row in rows]),
        )

    def _rows(self, chunks: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """(B, T + 1) ids, padded behind the end of a shard, and the (B, T) targets among them."""
        length = self.order.length
        rows = np.full((len(chunks), length + 1), self._padding, dtype=np.uint32)
        for row, shard, offset in zip(rows, *self.order.locate(chunks), strict=True):
            first = offset * length
            end = min(first + length + 1, self._num_tokens[shard])
            row[: end - first] = self._open(int(shard))[first:end]
        targets = rows[:, 1:].astype(np.int64)
        targets[np.arange(length) >= self.order.num_targets(chunks)[:, None]] = IGNORED
        return rows, targets


def reading_order(index: Index, config: RunConfig) -> ReadingOrder:
    """The order in which `config` reads the dataset of `index`."""
    seed = config.training.seed if config.data.order == "shuffled" else None
    return ReadingOrder(tuple(index.shard_tokens()), config.data.sequence_length, config.data.validation_chunks, seed)


def _row_digest(row: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    digest = hashlib.blake2b(row.astype("<u4").tobytes(), digest_size=DIGEST_BYTES)
    return np.frombuffer(digest.digest(), dtype=np.uint8)


def chain_digest(digest: str, row_digests: npt.NDArray[np.uint8]) -> str:
    """The digest of all data up to and with these sequences, given that of the data before them.

    >>> rows = np.zeros((2, 16), np.uint8)
    >>> chain_digest("", rows) == chain_digest("", rows[::-1]), chain_digest("", rows) == chain_digest("x", rows)
    (True, False)
    """
    chained = hashlib.blake2b(digest.encode() + row_digests.tobytes(), digest_size=DIGEST_BYTES)
    return chained.hexdigest()
