"""Chunks of a packing, as they are stored.

Legend: B sequences, T positions.
"""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from shared.cursor import Chunks
from shared.format import Index, stored_tokens
from shared.packing import CHUNK_DTYPE, PIECE_DTYPE, PackingName, read_packing, stored_chunks, stored_pieces
from train.buffers import Buffers
from train.config import DataConfig
from train.maps import ShardMaps, check_stored, map_tokens
from train.sequences import Sequences, Spans, join_digests, spread


class Pieces(NamedTuple):
    """The pieces of some chunks, end to end."""

    rows: Chunks
    """Which of the chunks each piece is in."""
    bounds: Chunks
    """The first piece of each chunk, then the number of all."""
    starts: Chunks
    """Where the ids of each piece begin in the map, in bytes."""
    places: Chunks
    ends: Chunks
    """Where its inputs begin and end in the chunk."""


class PackedView:
    """Chunks of a packing: pieces of documents end to end, then padding."""

    def __init__(self, name: PackingName, index: Index, data: DataConfig) -> None:
        packing = read_packing(name, index)
        self._length, self._padding = packing.length, index.tokenizer.end_of_document_id
        self.packing: str | None = packing.fingerprint
        self.shard_chunks = tuple(shard.num_chunks for shard in packing.shards)
        stored = partial(stored_chunks, name, packing), partial(stored_pieces, name, packing)
        self._stored = [partial(stored_tokens, name.tokens, index), *stored]
        self._ids = map_tokens(name.tokens, index, data.order == "shuffled")
        num_pieces = self._num_pieces = np.array([shard.num_pieces for shard in packing.shards], np.int64)
        self._chunks = ShardMaps(stored[0], np.array(self.shard_chunks, np.int64), CHUNK_DTYPE)
        self._pieces = ShardMaps(stored[1], num_pieces, PIECE_DTYPE)
        self._buffers = Buffers()
        self._tells_documents = data.tells_documents

    def check(self) -> None:
        """See View."""
        check_stored(self._stored, len(self.shard_chunks))

    def num_targets(self, shards: Chunks, offsets: Chunks) -> Chunks:
        """See View."""
        return self._chunks.read(shards, offsets)["num_targets"].astype(np.int64)

    def will_need(self, shards: Chunks, offsets: Chunks) -> None:
        """See View."""
        pieces = self._located(shards, offsets)
        self._ids.will_need(pieces.starts, pieces.ends - pieces.places + 1)

    def read(self, shards: Chunks, offsets: Chunks) -> Sequences:
        """See View. Padding is end-of-document ids, and a document of its own."""
        pieces, length = self._located(shards, offsets), self._length
        ids = self._copied(pieces)
        num_targets = pieces.ends[pieces.bounds[1:] - 1]
        for row in np.flatnonzero(num_targets < length).tolist():
            ids[row, num_targets[row] : length] = self._padding
        ids[:, length:-1] = ids[:, 1:length]
        last = pieces.starts + (pieces.ends - pieces.places) * self._ids.dtype.itemsize
        ids[pieces.rows, length + pieces.ends - 1] = self._ids.at(last)  # of a piece: the only target that is no input
        for row in np.flatnonzero(num_targets < length).tolist():
            ids[row, length + num_targets[row] :] = self._padding
        begins = np.insert(pieces.places, pieces.bounds[1:], num_targets)
        starts = spread(begins, np.diff(pieces.bounds) + 1, length) if self._tells_documents else None
        return Sequences(ids, num_targets, self._digests(ids, pieces), starts)

    def spans(self, shards: Chunks, offsets: Chunks) -> Spans:
        """See View."""
        pieces = self._located(shards, offsets)
        within = pieces.starts - self._ids.starts(shards)[pieces.rows]
        starts, sizes = within // self._ids.dtype.itemsize, pieces.ends - pieces.places + 1
        return Spans(shards[pieces.rows], starts, sizes, pieces.rows, pieces.places)

    def holding(self, shard: int, ids: range) -> Chunks:
        """See View."""
        shards = np.full(self._num_pieces[shard], shard)
        starts = self._pieces.read(shards, np.arange(len(shards)))["start"].astype(np.int64)
        chunks = self._chunks.read(np.full(self.shard_chunks[shard], shard), np.arange(self.shard_chunks[shard]))
        pieces = np.flatnonzero((starts >= ids.start) & (starts < ids.stop)).astype(np.uint64)
        return np.unique(np.searchsorted(chunks["first_piece"], pieces, side="right") - 1)

    def _located(self, shards: Chunks, offsets: Chunks) -> Pieces:
        chunks = self._chunks.read(shards, offsets)
        counts = chunks["num_pieces"].astype(np.int64)
        bounds = np.concatenate([[0], np.cumsum(counts)])
        rows = np.repeat(np.arange(len(shards)), counts)
        first = chunks["first_piece"].astype(np.int64) - bounds[:-1]
        found = self._pieces.read(shards[rows], first[rows] + np.arange(len(rows)))
        places = found["place"].astype(np.int64)
        ends = np.append(places[1:], 0)
        ends[bounds[1:] - 1] = chunks["num_targets"]
        starts = self._ids.starts(shards)[rows] + found["start"].astype(np.int64) * self._ids.dtype.itemsize
        return Pieces(rows, bounds, starts, places, ends)

    def _copied(self, pieces: Pieces) -> npt.NDArray[np.unsignedinteger]:
        """(B, 2T) ids, the inputs of all pieces in their places."""
        ids = self._buffers.unused((len(pieces.bounds) - 1, 2 * self._length), self._ids.dtype)
        size, source, target = self._ids.dtype.itemsize, self._ids.bytes, ids.reshape(-1).view(np.uint8).data
        sizes = (pieces.ends - pieces.places) * size
        to = pieces.rows * ids.strides[0] + pieces.places * size
        columns = to, to + sizes, pieces.starts, pieces.starts + sizes
        for place, end, start, stop in zip(*(column.tolist() for column in columns), strict=True):
            target[place:end] = source[start:stop]
        return ids

    def _digests(self, ids: npt.NDArray[np.unsignedinteger], pieces: Pieces) -> npt.NDArray[np.uint8]:
        """Of all ids of each sequence, and of where its documents end."""
        ends, bounds = pieces.ends.view(np.uint8).data, (pieces.bounds * pieces.ends.itemsize).tolist()
        seeds = (xxh3_64_intdigest(ends[first:last]) for first, last in pairwise(bounds))
        return join_digests(map(xxh3_128_digest, ids, seeds))
