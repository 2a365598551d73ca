"""Where a run is in its data: pure integer arithmetic, the same on every rank.

A *position* counts chunks in reading order from the start of the run, over all epochs. A *cursor* names the chunk at a
position: epoch, shard, offset (chunks into the shard). Each is a pure function of the other; nothing is accumulated,
stored or drawn, so world size, prefetch and restarts cannot change what is read when.

A *unit* is some chunks of a shard that follow each other and are shuffled as one. The tokens of an order of units are
the same whatever the length of the chunks in them, so a place in it can be told in chunks of another length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shared.permutation import permute, unpermute

Chunks = npt.NDArray[np.int64]


class Cursor(NamedTuple):
    """The next chunk that the run (not a rank) has not trained on."""

    epoch: int
    shard: int
    offset: int

    def at_length(self, length: int, wanted: int) -> "Cursor | None":
        """The same place told in chunks of `wanted` tokens instead of `length`; None if it is in the middle of one.

        >>> Cursor(0, 1, 6).at_length(1024, 2048), Cursor(0, 1, 7).at_length(1024, 2048)
        (Cursor(epoch=0, shard=1, offset=3), None)
        """
        offset, rest = divmod(self.offset * length, wanted)
        return None if rest else self._replace(offset=offset)

    def in_tokens(self, length: int) -> "Cursor":
        """The same place told in chunks of one token instead of `length`."""
        return self._replace(offset=self.offset * length)


def rank_positions(start: int, global_batch: int, dp_rank: int, dp_size: int) -> range:
    """Positions of the global batch at `start` that one data-parallel rank reads.

    >>> [list(rank_positions(8, 4, rank, 2)) for rank in range(2)]
    [[8, 9], [10, 11]]
    """
    return range(start + global_batch * dp_rank // dp_size, start + global_batch * (dp_rank + 1) // dp_size)


@dataclass(frozen=True)
class ReadingOrder:
    """The order in which a run reads the chunks of a dataset, of which each shard has so many as `shard_chunks` says.

    An epoch is the dataset's chunks in the natural order of their shards, less the validation range at its end, which
    begins with the unit from which on whole units hold `num_held_out` chunks. With a `seed` an epoch is a permutation,
    another one in each: of its whole units, then of what is left at the end of each shard. What a chunk is, the plain
    stream or a packing knows.

    >>> order = ReadingOrder((5, 1))
    >>> [tuple(order.cursor(position)) for position in (0, 5, 6)]
    [(0, 0, 0), (0, 1, 0), (1, 0, 0)]
    """

    shard_chunks: tuple[int, ...]
    num_held_out: int = 0
    seed: int | None = None
    unit_chunks: int = 1
    shard_units: tuple[int, ...] | None = None
    """Whole units of each shard. None: each chunk is one."""

    @classmethod
    def of_stream(
        cls, shard_targets: Chunks, length: int, unit_length: int, num_held_out: int = 0, seed: int | None = None
    ) -> "ReadingOrder":
        """The order of chunks of `length` in shards of so many targets, in units of `unit_length` targets.

        At any length that divides `unit_length` the same tokens stand in it in the same order, and are held out if
        `num_held_out` times the length is the same.

        >>> targets = np.array([19, 3])
        >>> [ReadingOrder.of_stream(targets, length, 8).chunks(range(4)).tolist() for length in (4, 8)]
        [[0, 1, 2, 3], [0, 1, 2, 3]]
        """
        chunks, units = -(-shard_targets // length), shard_targets // unit_length
        return cls(tuple(chunks.tolist()), num_held_out, seed, unit_length // length, tuple(units.tolist()))

    @cached_property
    def bounds(self) -> Chunks:
        """The first chunk of each shard in natural order, then the number of all chunks."""
        return _bounds(self.shard_chunks)

    @cached_property
    def unit_bounds(self) -> Chunks:
        """The first whole unit of each shard in natural order, then the number of all."""
        return self.bounds if self.shard_units is None else _bounds(self.shard_units)

    @cached_property
    def num_units(self) -> int:
        """Whole units of one epoch; less than none if there are not as many as are held out."""
        return int(self.unit_bounds[-1]) - -(-self.num_held_out // self.unit_chunks)

    @cached_property
    def num_training(self) -> int:
        """Chunks of one epoch; less than none if there are not as many as are held out."""
        if self.num_held_out == 0:
            return int(self.bounds[-1])
        if self.num_units < 0:
            return self.num_units * self.unit_chunks
        return int(self._first_chunks(np.array([self.num_units]))[0])

    def cursor(self, position: int) -> Cursor:
        """The cursor at `position`."""
        shards, offsets = self.locate(self.chunks(range(position, position + 1)))
        return Cursor(position // self.num_training, int(shards[0]), int(offsets[0]))

    def position(self, cursor: Cursor) -> int:
        """The position of `cursor`: the inverse of `cursor`."""
        return cursor.epoch * self.num_training + self._place(cursor)

    def epoch(self, position: int) -> int:
        """The epoch of the cursor at `position`."""
        return position // self.num_training

    def times(self, chunk: int, positions: range) -> list[int]:
        """Those of `positions` at which a chunk, named by its number, is read: none of one that is held out.

        >>> ReadingOrder((5, 1)).times(5, range(3, 18))
        [5, 11, 17]
        """
        if chunk >= self.num_training:
            return []
        shards, offsets = self.locate(np.array([chunk]))
        epochs = range(positions.start // self.num_training, -(-positions.stop // self.num_training))
        all_times = (self.position(Cursor(epoch, int(shards[0]), int(offsets[0]))) for epoch in epochs)
        return [position for position in all_times if position in positions]

    def is_training(self, chunks: Chunks) -> npt.NDArray[np.bool_]:
        """Whether each chunk is trained on, and not held out."""
        return chunks < self.num_training

    def chunks(self, positions: range) -> Chunks:
        """Numbers, in natural order over all shards, of the chunks at `positions`."""
        parts, position = [np.empty(0, np.int64)], positions.start
        while position < positions.stop:
            epoch, place = divmod(position, self.num_training)
            places = range(place, min(place + positions.stop - position, self.num_training))
            parts.append(self._chunks_of_epoch(epoch, places))
            position += len(places)
        return np.concatenate(parts)

    def held_out(self, positions: range) -> Chunks:
        """Numbers of the held-out chunks at `positions` of the validation range, which is read in natural order."""
        return self._of_units(positions, lambda places: places + self.num_units)

    def locate(self, chunks: Chunks) -> tuple[Chunks, Chunks]:
        """Shard and offset of each chunk number."""
        shards = np.searchsorted(self.bounds, chunks, side="right") - 1
        return shards, chunks - self.bounds[shards]

    def _chunks_of_epoch(self, epoch: int, places: range) -> Chunks:
        if self.seed is None:
            return np.arange(places.start, places.stop, dtype=np.int64)
        num_whole, key = self.num_units * self.unit_chunks, self._key(epoch)
        parts = []
        if places.start < num_whole:
            whole = range(places.start, min(places.stop, num_whole))
            parts.append(self._of_units(whole, lambda units: permute(units, self.num_units, key)))
        if places.stop > num_whole:
            parts.append(self._of_tails(epoch, np.arange(max(places.start, num_whole), places.stop) - num_whole))
        return np.concatenate(parts)

    def _place(self, cursor: Cursor) -> int:
        """The place of a chunk in its epoch."""
        if self.seed is None:
            return int(self.bounds[cursor.shard]) + cursor.offset
        size = self.unit_chunks
        first, end = map(int, self.unit_bounds[cursor.shard : cursor.shard + 2])
        unit, offset = divmod(cursor.offset, size)
        if first + unit < end:
            place = int(unpermute(np.array([first + unit]), self.num_units, self._key(cursor.epoch))[0])
            return place * size + offset
        shards, starts = self._tails(cursor.epoch)
        start = int(starts[np.flatnonzero(shards == cursor.shard)[0]])
        return self.num_units * size + start + cursor.offset - (end - first) * size

    def _of_units(self, places: range, units_at: Callable[[Chunks], Chunks]) -> Chunks:
        """The chunks at some places of whole units that stand one behind the other, the unit at each place given."""
        size = self.unit_chunks
        first = places.start // size
        units = units_at(np.arange(first, -(-places.stop // size), dtype=np.int64))
        chunks = self._first_chunks(units)[:, None] + np.arange(size)
        return chunks.reshape(-1)[places.start - first * size :][: len(places)]

    def _first_chunks(self, units: Chunks) -> Chunks:
        """The first chunk of each whole unit."""
        if self.shard_units is None:
            return units
        shards = np.searchsorted(self.unit_bounds, units, side="right") - 1
        return self.bounds[shards] + (units - self.unit_bounds[shards]) * self.unit_chunks

    def _of_tails(self, epoch: int, places: Chunks) -> Chunks:
        """The chunks at some places of what fills no unit."""
        shards, starts = self._tails(epoch)
        numbers = np.searchsorted(starts, places, side="right") - 1
        return self.bounds[shards[numbers] + 1] - (starts[numbers + 1] - places)

    def _tails(self, epoch: int) -> tuple[Chunks, Chunks]:
        """Shards in the order in which their ends are read that fill no unit; where each begins there, then all end."""
        count = int(np.searchsorted(self.bounds, self.num_training, side="right")) - 1  # before the validation range
        shards = permute(np.arange(count), count, self._key(epoch) + b"/tails")
        sizes = np.diff(self.bounds) - np.diff(self.unit_bounds) * self.unit_chunks
        return shards, np.concatenate([[0], np.cumsum(sizes[shards])])

    def _key(self, epoch: int) -> bytes:
        return f"{self.seed}/{epoch}".encode()


def _bounds(counts: tuple[int, ...]) -> Chunks:
    bounds = np.cumsum([0, *counts], dtype=np.int64)
    bounds.flags.writeable = False  # shared by all that ask
    return bounds
