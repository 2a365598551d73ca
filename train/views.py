"""The ways to cut the tokens of a dataset into chunks: its plain stream, or a packing. Chosen once, for a whole run.

The label shift is made here and nowhere else.

Legend: B sequences, T positions.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from shared.cursor import Chunks
from shared.errors import FormatError
from shared.format import VALIDATION_NAME, Index, num_chunks, open_tokens, read_index
from shared.packing import PackingName, open_chunks, open_pieces, read_packing
from train.config import RunConfig
from train.loss import IGNORED

OPEN_SHARDS = 256  # maps kept open of each of up to three kinds; each holds a file descriptor, of often 1,024
DIGEST_BYTES = 16


class Sequences(NamedTuple):
    """Chunks, as a model takes them."""

    inputs_BT: npt.NDArray[np.int64]
    targets_BT: npt.NDArray[np.int64]
    """The id after each input in its document or stream, or IGNORED where there is none."""
    row_digests: npt.NDArray[np.uint8]
    """(B, DIGEST_BYTES): a hash of all that is in each sequence."""
    starts_BT: npt.NDArray[np.int32] | None = None
    """The first position of the document that each position is in; None where documents are not told apart."""


class View(Protocol):
    """One way to cut a dataset into chunks. A chunk is named by its shard and its offset there."""

    @property
    def shard_chunks(self) -> tuple[int, ...]:
        """Chunks of each shard."""

    @property
    def packing(self) -> str | None:
        """The fingerprint of the packing that is read, or None for the plain stream."""

    def check(self) -> None:
        """Raises: FormatError if a file is not there in full."""

    def num_targets(self, shards: Chunks, offsets: Chunks) -> int:
        """Real targets of these chunks together; their tokens are not read for it."""

    def read(self, shards: Chunks, offsets: Chunks) -> Sequences:
        """These chunks, in this order."""


def open_view(tokens: Path, index: Index, config: RunConfig) -> View:
    """The view of the dataset in `tokens` that `config` names.

    Raises: FormatError if there is no such packing, or it is of another dataset.
    """
    length = config.data.sequence_length
    if config.data.packing is None:
        return PlainView(tokens, index, length)
    return PackedView(PackingName(tokens, config.data.packing, length), index)


def open_validation(tokens: Path, index: Index, config: RunConfig) -> tuple[View, str] | None:
    """The view of the dataset's validation split and its fingerprint, if `config` validates on that.

    Raises: FormatError if there is none, or none of the same tokenizer.
    """
    if config.data.validation != "split" or not config.data.validation_chunks:
        return None
    directory = tokens / VALIDATION_NAME
    held_out = read_index(directory)
    if held_out.tokenizer.sha256 != index.tokenizer.sha256:
        found, wanted = held_out.tokenizer.sha256[:12], index.tokenizer.sha256[:12]
        raise FormatError(f"{directory} has tokenizer {found}, {tokens} has {wanted}: tokenize both again, together")
    return open_view(directory, held_out, config), held_out.fingerprint


class PlainView:
    """Every shard as one stream: chunk i is the `length` ids from i * length on, each with the id after it."""

    packing = None

    def __init__(self, tokens: Path, index: Index, length: int) -> None:
        self._tokens, self._index, self._length = tokens, index, length
        self._num_tokens = np.array(index.shard_tokens(), dtype=np.int64)
        self.shard_chunks = tuple(num_chunks(tokens, length) for tokens in index.shard_tokens())
        self._open = _kept(lambda shard: open_tokens(tokens, index, shard))

    def check(self) -> None:
        """See View."""
        for shard in range(len(self.shard_chunks)):
            open_tokens(self._tokens, self._index, shard)

    def num_targets(self, shards: Chunks, offsets: Chunks) -> int:
        """See View."""
        return int(self._targets(shards, offsets).sum())

    def read(self, shards: Chunks, offsets: Chunks) -> Sequences:
        """See View. What pads a chunk behind the end of its shard are end-of-document ids."""
        padding = self._index.tokenizer.end_of_document_id
        rows = np.full((len(shards), self._length + 1), padding, dtype=np.uint32)
        for row, shard, offset in zip(rows, shards, offsets, strict=True):
            first = offset * self._length
            end = min(first + self._length + 1, self._num_tokens[shard])
            row[: end - first] = self._open(int(shard))[first:end]
        targets = rows[:, 1:].astype(np.int64)
        targets[np.arange(self._length) >= self._targets(shards, offsets)[:, None]] = IGNORED
        return Sequences(rows[:, :-1].astype(np.int64), targets, np.stack([_digest(row) for row in rows]))

    def _targets(self, shards: Chunks, offsets: Chunks) -> Chunks:
        left: Chunks = self._num_tokens[shards] - 1 - offsets * self._length
        return np.minimum(left, self._length)


class PackedView:
    """Chunks of a packing: pieces of documents end to end, then padding."""

    def __init__(self, name: PackingName, index: Index) -> None:
        packing = read_packing(name, index)
        self._index, self._length = index, packing.length
        self.packing: str | None = packing.fingerprint
        self.shard_chunks = tuple(shard.num_chunks for shard in packing.shards)
        self._openers = (
            lambda shard: open_tokens(name.tokens, index, shard),
            lambda shard: open_chunks(name, packing, shard),
            lambda shard: open_pieces(name, packing, shard),
        )
        self._tokens, self._chunks, self._pieces = map(_kept, self._openers)

    def check(self) -> None:
        """See View."""
        for shard in range(len(self.shard_chunks)):
            for opener in self._openers:
                opener(shard)

    def num_targets(self, shards: Chunks, offsets: Chunks) -> int:
        """See View."""
        shards_there = np.unique(shards).tolist()
        each = (self._chunks(shard)["num_targets"][offsets[shards == shard]] for shard in shards_there)
        return sum(int(targets.sum(dtype=np.int64)) for targets in each)

    def read(self, shards: Chunks, offsets: Chunks) -> Sequences:
        """See View. Padding is end-of-document ids, and a document of its own."""
        shape = len(shards), self._length
        inputs = np.full(shape, self._index.tokenizer.end_of_document_id, dtype=np.int64)
        targets = np.full(shape, IGNORED, dtype=np.int64)
        starts = np.empty(shape, dtype=np.int32)
        digests = []
        for row, (shard, offset) in enumerate(zip(shards.tolist(), offsets.tolist(), strict=True)):
            pieces = self._located(shard, offset)
            for place, end, ids in pieces:
                inputs[row, place:end], targets[row, place:end], starts[row, place:end] = ids[:-1], ids[1:], place
            ends = [end for _, end, _ in pieces]
            starts[row, ends[-1] :] = ends[-1]
            last = [ids[-1] for *_, ids in pieces]  # all other targets are inputs too
            digests.append(_digest(np.array([len(ends), *ends, *last]), inputs[row, : ends[-1]]))
        return Sequences(inputs, targets, np.stack(digests), starts)

    def _located(self, shard: int, offset: int) -> list[tuple[int, int, npt.NDArray]]:
        """Where each piece of a chunk begins and ends in it, and its ids: one more than it has targets."""
        first, num_pieces, num_targets = self._chunks(shard)[offset].item()
        pieces = self._pieces(shard)[first : first + num_pieces].tolist()
        ends, tokens = [*(place for _, place in pieces[1:]), num_targets], self._tokens(shard)
        return [
            (place, end, tokens[start : start + end - place + 1])
            for (start, place), end in zip(pieces, ends, strict=True)
        ]


def _kept(opener: Callable[[int], npt.NDArray]) -> Callable[[int], npt.NDArray]:
    """`opener` with the last arrays kept open, as plain arrays: slicing a memmap takes several times as long."""
    return lru_cache(maxsize=OPEN_SHARDS)(lambda shard: np.asarray(opener(shard)))


def _digest(*values: npt.NDArray) -> npt.NDArray[np.uint8]:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for value in values:
        digest.update(value.astype("<u4").data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)
