"""Token dataset -> batches. A batch is a pure function of a view of the dataset, the reading order and a position.

What is prefetched is a guess at the next call; it may be thrown away at any time.

Legend: B sequences, T positions.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.cursor import Chunks, rank_positions
from train.buffers import Widening
from train.config import RunConfig
from train.loss import IGNORED
from train.orders import reading_order, validation_order
from train.places import Places
from train.sequences import DIGEST_BYTES, Spans
from train.views import View

BLOCK_IDS = 1 << 20  # read at once, in whole batches: one hand-over between threads for all of them
BLOCK_BATCHES = 32


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
    """Serves the batch at any position; reads the next block of them ahead."""

    def __init__(
        self,
        view: View,
        config: RunConfig,
        dp_rank: int,
        dp_size: int,
        device: torch.device,
        validation: View | None = None,
        starts: tuple[int, ...] = (),
    ) -> None:
        self.device, self.sources = device, config.data.sources
        self.order = reading_order(view, config, starts)
        self.num_held_out = config.data.validation_chunks * max(len(self.sources), 1)
        self.global_batch = config.data.global_batch
        self._length = config.data.sequence_length
        share = rank_positions(0, self.global_batch, dp_rank, dp_size)
        self._training = Places(view, self.order, self.order.chunks, self.global_batch, share)
        held_out = self.order if validation is None else validation_order(validation, config)
        self._held_out = Places(
            validation or view, held_out, held_out.held_out, self.global_batch, share, self.num_held_out
        )
        in_block = BLOCK_IDS // (len(share) * self._length)
        self._span = self.global_batch * min(max(1, in_block), BLOCK_BATCHES)
        self._widen = Widening(device)
        self._positions, self._batches = range(0), list[Batch]()
        self._ahead: tuple[int, Future[Block]] | None = None
        self._thread = _one_thread()  # the only one to use the views

    def fetch(self, position: int) -> tuple[Batch, float]:
        """This rank's part of the global batch at `position`, and the seconds that were spent waiting for it."""
        began = time.perf_counter()
        if position not in self._positions:
            block = self._next_block(position)
            self._batches = []  # their memory is used again, if nobody else has any of them
            self._positions, self._batches = block.positions, block.batches(self._widen)
        waited = time.perf_counter() - began
        return self._batches[self._positions.index(position)], waited

    def spans(self, position: int) -> Spans:
        """What of the dataset the global batch at `position` is, over all ranks."""
        chunks = self.order.chunks(range(position, position + self.global_batch))
        return self._thread.submit(self._training.view.spans, *self.order.locate(chunks)).result()

    def held_out(self, position: int) -> Batch:
        """This rank's part of the global batch at `position` of the validation range."""
        positions = range(position, position + self.global_batch)
        return self._thread.submit(self._read, positions, self._held_out).result().batches(self._widen)[0]

    def close(self) -> None:
        """End the thread that reads ahead."""
        self._thread.shutdown(cancel_futures=True)

    def _next_block(self, position: int) -> "Block":
        ahead = self._ahead[1] if self._ahead and self._ahead[0] == position else self._read_ahead(position)
        self._ahead = (position + self._span, self._read_ahead(position + self._span))
        return ahead.result()

    def _read_ahead(self, position: int) -> "Future[Block]":
        return self._thread.submit(self._read, range(position, position + self._span), self._training)

    def _read(self, positions: range, places: Places) -> "Block":
        sequences = places.read(positions)
        return Block(
            positions[:: self.global_batch],
            self._length,
            _tensor(sequences.ids, self.device),
            None if sequences.starts_BT is None else _tensor(sequences.starts_BT, self.device),
            sequences.num_targets,
            places.num_targets(positions),
            sequences.row_digests,
        )


@dataclass(frozen=True)
class Block:
    """This rank's part of several global batches, as it is stored; in pinned memory if it goes to a GPU."""

    positions: range
    """Of the global batches."""
    length: int
    ids: Tensor
    starts_BT: Tensor | None
    row_targets: Chunks
    num_targets: list[int]
    row_digests: npt.NDArray[np.uint8]

    def batches(self, widen: Callable[[Tensor], Tensor]) -> list[Batch]:
        """The batch at each position: narrow ids go to the device, and are widened there, all of them at once."""
        wide, size = widen(self.ids), len(self.ids) // len(self.positions)
        starts_BT = None if self.starts_BT is None else self.starts_BT.to(wide.device, non_blocking=True)
        batches = [
            Batch(*columns)
            for columns in zip(
                torch.split(wide[:, : self.length], size),
                torch.split(wide[:, -self.length :], size),
                self.num_targets,
                self.row_digests.reshape(-1, size, DIGEST_BYTES),
                repeat(None) if starts_BT is None else torch.split(starts_BT, size),
                strict=False,
            )
        ]
        is_short = (self.row_targets < self.length).reshape(-1, size)
        for number in np.flatnonzero(is_short.any(axis=1)).tolist():
            targets_BT = batches[number].targets_BT
            if wide.shape[1] < 2 * self.length:  # an id that is no target is an input too
                targets_BT = targets_BT.clone()
            _ignore_padding(targets_BT, self.row_targets.reshape(-1, size)[number])
            batches[number] = replace(batches[number], targets_BT=targets_BT)
        return batches


def _one_thread() -> ThreadPoolExecutor:
    """A thread that gathers on its own: with helpers it would take the cores that a step is computed on."""
    threads = torch.get_num_threads()
    thread = ThreadPoolExecutor(1, "reader", initializer=partial(torch.set_num_threads, 1))
    thread.submit(torch.get_num_threads).result()
    torch.set_num_threads(threads)  # what is set in a thread holds there, and for those that begin later
    return thread


def _ignore_padding(targets_BT: Tensor, ends: Chunks) -> None:
    """What is behind the end of each row becomes IGNORED."""
    length, device = targets_BT.shape[1], targets_BT.device
    short = np.flatnonzero(ends < length)
    rows, stops = (torch.from_numpy(array).to(device) for array in (short, ends[short]))
    is_padding = torch.arange(length, device=device) >= stops[:, None]
    targets_BT[rows] = targets_BT[rows].masked_fill(is_padding, IGNORED)


def _tensor(array: npt.NDArray, device: torch.device) -> Tensor:
    """The array as a tensor that goes to `device` without the host waiting; its memory is used again when it may be."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def chain_digest(digest: str, row_digests: npt.NDArray[np.uint8]) -> str:
    """The digest of all data up to and with these sequences, given that of the data before them.

    >>> rows = np.zeros((2, 16), np.uint8)
    >>> chain_digest("", rows) == chain_digest("", rows[::-1]), chain_digest("", rows) == chain_digest("x", rows)
    (True, False)
    """
    chained = hashlib.blake2b(digest.encode() + row_digests.tobytes(), digest_size=DIGEST_BYTES)
    return chained.hexdigest()
