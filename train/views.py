"""The ways to cut the tokens of a dataset into chunks: its plain stream, or a packing. Chosen once, for a whole run.

The label shift is made here and nowhere else.

Legend: B sequences, T positions.
"""

from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from xxhash import xxh3_128_digest

from shared.cursor import Chunks
from shared.format import Index, chunks_of, stored_documents, stored_tokens
from shared.packing import PackingName
from train.buffers import Buffers
from train.config import DataConfig, RunConfig
from train.documents import Documents
from train.maps import check_stored, map_tokens
from train.packed import PackedView
from train.sequences import Sequences, Spans, join_digests


class View(Protocol):
    """One way to cut a dataset into chunks. A chunk is named by its shard and its offset there.

    `check` may be called from any thread, the others from one at a time.
    """

    @property
    def shard_chunks(self) -> tuple[int, ...]:
        """Chunks of each shard."""

    @property
    def packing(self) -> str | None:
        """The fingerprint of the packing that is read, or None for the plain stream."""

    def check(self) -> None:
        """Raises: FormatError if a file is not there in full."""

    def num_targets(self, shards: Chunks, offsets: Chunks) -> Chunks:
        """Real targets of each of these chunks; their tokens are not read for it."""

    def will_need(self, shards: Chunks, offsets: Chunks) -> None:
        """Have the system read these chunks from the disk, without waiting for it."""

    def read(self, shards: Chunks, offsets: Chunks) -> Sequences:
        """These chunks, in this order."""

    def spans(self, shards: Chunks, offsets: Chunks) -> Spans:
        """What of the shards is in these chunks; one chunk may be of several spans."""

    def holding(self, shard: int, ids: range) -> Chunks:
        """Offsets of the chunks that have any of the ids of a document of a shard, as an input or a target."""


def open_view(tokens: Path, index: Index, config: RunConfig) -> View:
    """The view of the dataset in `tokens` that `config` names.

    Raises: FormatError if there is no such packing, or it is of another dataset.
    """
    if config.data.packing is None:
        return PlainView(tokens, index, config.data)
    return PackedView(PackingName(tokens, config.data.packing, config.data.sequence_length), index, config.data)


class PlainView:
    """Every shard as one stream: chunk i is the T ids from i * T on, each with the id after it."""

    packing = None

    def __init__(self, tokens: Path, index: Index, data: DataConfig) -> None:
        self._length, self._padding = data.sequence_length, index.tokenizer.end_of_document_id
        self._num_tokens = np.array(index.shard_tokens(), dtype=np.int64)
        self.shard_chunks = tuple(chunks_of(self._num_tokens, self._length).tolist())
        self._stored = [partial(stored_tokens, tokens, index)]
        self._ids = map_tokens(tokens, index, data.order == "shuffled", room=self._length + 1)
        self._windows, self._buffers = self._ids.windows(self._length + 1), Buffers()
        self._documents = None
        if data.tells_documents:
            self._stored.append(partial(stored_documents, tokens, index))
            self._documents = Documents(tokens, index)

    def check(self) -> None:
        """See View."""
        check_stored(self._stored, len(self.shard_chunks))

    def num_targets(self, shards: Chunks, offsets: Chunks) -> Chunks:
        """See View."""
        left: Chunks = self._num_tokens[shards] - 1 - offsets * self._length
        return np.minimum(left, self._length)

    def will_need(self, shards: Chunks, offsets: Chunks) -> None:
        """See View."""
        self._ids.will_need(self._places(shards, offsets), self.num_targets(shards, offsets) + 1)

    def read(self, shards: Chunks, offsets: Chunks) -> Sequences:
        """See View. What pads a chunk behind the end of its shard are end-of-document ids."""
        ids = self._buffers.unused((len(shards), self._length + 1), self._ids.dtype)
        self._windows.gather(self._places(shards, offsets), ids)
        num_targets = self.num_targets(shards, offsets)
        for row in np.flatnonzero(num_targets < self._length).tolist():
            ids[row, num_targets[row] + 1 :] = self._padding
        starts = None
        if self._documents is not None:
            starts = self._documents.starts(shards, offsets * self._length, self._length)
        return Sequences(ids, num_targets, join_digests(map(xxh3_128_digest, ids)), starts)

    def spans(self, shards: Chunks, offsets: Chunks) -> Spans:
        """See View."""
        rows = np.arange(len(shards))
        return Spans(shards, offsets * self._length, self.num_targets(shards, offsets) + 1, rows, np.zeros_like(rows))

    def holding(self, shard: int, ids: range) -> Chunks:
        """See View. The first of the ids is a target of the chunk before, too, where it is the first of one."""
        first, last = max(ids.start - 1, 0) // self._length, (ids.stop - 1) // self._length
        return np.arange(first, min(last, self.shard_chunks[shard] - 1) + 1)

    def _places(self, shards: Chunks, offsets: Chunks) -> Chunks:
        return self._ids.starts(shards) + offsets * (self._length * self._ids.dtype.itemsize)
