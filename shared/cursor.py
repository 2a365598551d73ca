"""Where a run is in its data: pure integer arithmetic, the same on every rank.

A *position* counts chunks in reading order from the start of the run, over all epochs. A *cursor* names the chunk at a
position: epoch, shard, offset (chunks into the shard). Each is a pure function of the other; nothing is accumulated,
stored or drawn, so world size, prefetch and restarts cannot change what is read when.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

ROUNDS = 6
Integers = npt.NDArray[np.uint64]
Chunks = npt.NDArray[np.int64]


class Cursor(NamedTuple):
    """The next chunk that the run (not a rank) has not trained on."""

    epoch: int
    shard: int
    offset: int


def rank_positions(start: int, global_batch: int, dp_rank: int, dp_size: int) -> range:
    """Positions of the global batch at `start` that one data-parallel rank reads.

    >>> [list(rank_positions(8, 4, rank, 2)) for rank in range(2)]
    [[8, 9], [10, 11]]
    """
    return range(start + global_batch * dp_rank // dp_size, start + global_batch * (dp_rank + 1) // dp_size)


@dataclass(frozen=True)
class ReadingOrder:
    """The order in which a run reads the chunks of a dataset, of which each shard has so many as `shard_chunks` says.

    An epoch is the dataset's chunks in the natural order of their shards, less the last `num_held_out` chunks (the
    validation range); with a `seed`, it is a permutation of them, another one in each epoch. What a chunk is, the plain
    stream or a packing knows.

    >>> order = ReadingOrder((5, 1))
    >>> [tuple(order.cursor(position)) for position in (0, 5, 6)]
    [(0, 0, 0), (0, 1, 0), (1, 0, 0)]
    """

    shard_chunks: tuple[int, ...]
    num_held_out: int = 0
    seed: int | None = None

    @cached_property
    def bounds(self) -> Chunks:
        """The first chunk of each shard in natural order, then the number of all chunks."""
        bounds = np.cumsum([0, *self.shard_chunks], dtype=np.int64)
        bounds.flags.writeable = False  # shared by all that ask
        return bounds

    @property
    def num_training(self) -> int:
        """Chunks of one epoch."""
        return int(self.bounds[-1]) - self.num_held_out

    def cursor(self, position: int) -> Cursor:
        """The cursor at `position`."""
        epoch, place = divmod(position, self.num_training)
        chunk = place if self.seed is None else int(permute(np.array([place]), self.num_training, self._key(epoch))[0])
        shards, offsets = self.locate(np.array([chunk]))
        return Cursor(epoch, int(shards[0]), int(offsets[0]))

    def position(self, cursor: Cursor) -> int:
        """The position of `cursor`: the inverse of `cursor`."""
        chunk = int(self.bounds[cursor.shard]) + cursor.offset
        if self.seed is not None:
            chunk = int(unpermute(np.array([chunk]), self.num_training, self._key(cursor.epoch))[0])
        return cursor.epoch * self.num_training + chunk

    def chunks(self, positions: range) -> Chunks:
        """Numbers, in natural order over all shards, of the chunks at `positions`."""
        epochs, chunks = np.divmod(np.arange(positions.start, positions.stop, dtype=np.int64), self.num_training)
        if self.seed is not None:
            for epoch in np.unique(epochs):
                there = epochs == epoch
                chunks[there] = permute(chunks[there], self.num_training, self._key(int(epoch)))
        return chunks

    def held_out(self, positions: range) -> Chunks:
        """Numbers of the held-out chunks at `positions` of the validation range, which is read in natural order."""
        return self.num_training + np.arange(positions.start, positions.stop, dtype=np.int64)

    def locate(self, chunks: Chunks) -> tuple[Chunks, Chunks]:
        """Shard and offset of each chunk number."""
        shards = np.searchsorted(self.bounds, chunks, side="right") - 1
        return shards, chunks - self.bounds[shards]

    def _key(self, epoch: int) -> bytes:
        return f"{self.seed}/{epoch}".encode()


def permute(places: Chunks, size: int, key: bytes) -> Chunks:
    """Image of each place in [0, size) under the permutation of [0, size) that `key` names.

    A Feistel network on a grid of at least `size` cells, walked until it lands inside: no table, no memory, any size.

    Source: J. Black and P. Rogaway, Ciphers with Arbitrary Finite Domains, 2002 (generalized Feistel, cycle walking).
    """
    return _walk(places, size, key, forward=True)


def unpermute(images: Chunks, size: int, key: bytes) -> Chunks:
    """The inverse of `permute`."""
    return _walk(images, size, key, forward=False)


def _walk(values: Chunks, size: int, key: bytes, *, forward: bool) -> Chunks:
    rows = isqrt(size - 1) + 1
    columns = -(-size // rows)
    keys = _round_keys(key)
    out = _feistel(values.astype(np.uint64), rows, columns, keys, forward)
    while (outside := out >= size).any():
        out[outside] = _feistel(out[outside], rows, columns, keys, forward)
    return out.astype(np.int64)


def _feistel(values: Integers, rows: int, columns: int, keys: tuple[int, ...], forward: bool) -> Integers:
    row = values // np.uint64(columns)
    column = values - row * np.uint64(columns)
    for number in range(ROUNDS) if forward else reversed(range(ROUNDS)):
        if number % 2 == 0:
            row = _shift(row, _mix(column, keys[number]), rows, forward)
        else:
            column = _shift(column, _mix(row, keys[number]), columns, forward)
    return row * np.uint64(columns) + column


def _shift(values: Integers, amounts: Integers, modulus: int, forward: bool) -> Integers:
    """Values below `modulus`, moved on or back by the amounts, round it. numpy divides faster than it does %."""
    size = np.uint64(modulus)
    amounts = amounts - amounts // size * size
    moved = values + (amounts if forward else size - amounts)
    turned: Integers = np.minimum(moved, moved - size)  # what is below zero has wrapped round to the highest numbers
    return turned


def _mix(values: Integers, key: int) -> Integers:
    """64 well-mixed bits for each value. Source: the finalizer of SplitMix64, S. Vigna, 2015."""
    mixed = values ^ np.uint64(key)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@lru_cache(maxsize=16)
def _round_keys(key: bytes) -> tuple[int, ...]:
    digest = hashlib.blake2b(key, digest_size=8 * ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(ROUNDS))
