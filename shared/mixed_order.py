"""The order in which a run reads several datasets: by turns, each in its own order.

It can be asked all that a reading order of one dataset can. Shards are numbered over all sources, end to end, and so
are chunks. A cursor names a chunk of one source, and as the position of that in its source is one position of the
mixture, it says of every other source, too, where the run is there: there is one cursor, not one for each source.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from shared.cursor import Chunks, Cursor, ReadingOrder
from shared.mixture import Mixture


@dataclass(frozen=True)
class MixedOrder:
    """The order of sources by turns, each from its position in `starts` on.

    Of its held-out chunks those of the first source come first; each source has as many.

    >>> order = MixedOrder((ReadingOrder((5, 1)), ReadingOrder((2,))), Mixture((3, 1)), (0, 1))
    >>> [tuple(order.cursor(position)) for position in (0, 1, 2, 6)]
    [(0, 0, 0), (0, 0, 1), (0, 2, 1), (1, 2, 0)]
    """

    parts: tuple[ReadingOrder, ...]
    mixture: Mixture
    starts: tuple[int, ...]

    @cached_property
    def shard_chunks(self) -> tuple[int, ...]:
        """Chunks of each shard."""
        return tuple(chunks for part in self.parts for chunks in part.shard_chunks)

    @cached_property
    def first_shards(self) -> Chunks:
        """The first shard of each source, then the number of all."""
        return _ends(len(part.shard_chunks) for part in self.parts)

    @cached_property
    def first_chunks(self) -> Chunks:
        """The number of the first chunk of each source, then of all chunks."""
        return _ends(int(part.bounds[-1]) for part in self.parts)

    @cached_property
    def bounds(self) -> Chunks:
        """The first chunk of each shard in natural order, then the number of all chunks."""
        return _ends(self.shard_chunks)

    @property
    def num_held_out(self) -> int:
        """Chunks that are held out, of all sources."""
        return sum(part.num_held_out for part in self.parts)

    @property
    def num_training(self) -> int:
        """Chunks of all sources, each once; less than none if a source has not as many as are held out of it."""
        least = min(part.num_training for part in self.parts)
        return least if least < 0 else sum(part.num_training for part in self.parts)

    def source_of_shard(self, shard: int) -> int:
        """The source that a shard is of."""
        return int(np.searchsorted(self.first_shards, shard, side="right")) - 1

    def taken(self, position: int) -> tuple[int, ...]:
        """Where a run that is at `position` is in each source."""
        counts = self.mixture.counts(position)
        return tuple(start + count for start, count in zip(self.starts, counts, strict=True))

    def cursor(self, position: int) -> Cursor:
        """The cursor at `position`; its epoch is that of the source it is in."""
        source, place = self._at(position)
        cursor = self.parts[source].cursor(place)
        return cursor._replace(shard=int(self.first_shards[source]) + cursor.shard)

    def position(self, cursor: Cursor) -> int:
        """The position of `cursor`: the inverse of `cursor`."""
        source = self.source_of_shard(cursor.shard)
        place = self.parts[source].position(cursor._replace(shard=cursor.shard - int(self.first_shards[source])))
        return int(self.mixture.position(source, np.array([place - self.starts[source]]))[0])

    def epoch(self, position: int) -> int:
        """The epoch of the cursor at `position`."""
        source, place = self._at(position)
        return self.parts[source].epoch(place)

    def times(self, chunk: int, positions: range) -> list[int]:
        """Those of `positions` at which a chunk, named by its number, is read: none of one that is held out."""
        source = int(np.searchsorted(self.first_chunks, chunk, side="right")) - 1
        places = range(self.taken(positions.start)[source], self.taken(positions.stop)[source])
        found = np.array(self.parts[source].times(chunk - int(self.first_chunks[source]), places), np.int64)
        times: list[int] = self.mixture.position(source, found - self.starts[source]).tolist()
        return times

    def is_training(self, chunks: Chunks) -> npt.NDArray[np.bool_]:
        """Whether each chunk is trained on, and not held out."""
        sources = np.searchsorted(self.first_chunks, chunks, side="right") - 1
        ends = np.array([part.num_training for part in self.parts]) + self.first_chunks[:-1]
        is_before: npt.NDArray[np.bool_] = chunks < ends[sources]
        return is_before

    def sources(self, positions: range) -> Chunks:
        """The source of each of `positions`."""
        return self.mixture.at(np.arange(positions.start, positions.stop)).sources

    def chunks(self, positions: range) -> Chunks:
        """Numbers, in natural order over all shards of all sources, of the chunks at `positions`."""
        sources = self.sources(positions)
        chunks = np.empty(len(positions), np.int64)
        begin, end = self.taken(positions.start), self.taken(positions.stop)
        for source, part in enumerate(self.parts):
            mine = part.chunks(range(begin[source], end[source]))
            chunks[sources == source] = mine + self.first_chunks[source]
        return chunks

    def held_out(self, positions: range) -> Chunks:
        """Numbers of the held-out chunks at `positions`, which go through one source after the other."""
        pieces, first = [np.empty(0, np.int64)], 0
        for source, part in enumerate(self.parts):
            mine = range(max(positions.start, first), min(positions.stop, first + part.num_held_out))
            if mine:
                places = range(mine.start - first, mine.stop - first)
                pieces.append(part.held_out(places) + self.first_chunks[source])
            first += part.num_held_out
        return np.concatenate(pieces)

    def locate(self, chunks: Chunks) -> tuple[Chunks, Chunks]:
        """Shard and offset of each chunk number."""
        shards = np.searchsorted(self.bounds, chunks, side="right") - 1
        return shards, chunks - self.bounds[shards]

    def _at(self, position: int) -> tuple[int, int]:
        taken = self.mixture.at(np.array([position]))
        source = int(taken.sources[0])
        return source, self.starts[source] + int(taken.positions[0])


Order = ReadingOrder | MixedOrder


def parts_of(order: Order) -> tuple[ReadingOrder, ...]:
    """The order of each dataset that is read."""
    return order.parts if isinstance(order, MixedOrder) else (order,)


def next_unread(before: ReadingOrder, length: int, position: int, after: ReadingOrder, wanted: int) -> int:
    """The first position of `after`, in chunks of `wanted`, of which nothing stands before `position` of `before`, in
    chunks of `length`; the same tokens stand in both in the same order.

    Of a chunk that was begun the rest is left out for that epoch: nothing is read twice.

    >>> order = ReadingOrder((40,))
    >>> [next_unread(order, 1024, position, ReadingOrder((10,)), 4096) for position in (0, 7, 8, 39, 41)]
    [0, 2, 2, 10, 11]
    """
    cursor = before.cursor(position)
    offset, rest = divmod(cursor.offset * length, wanted)
    return after.position(cursor._replace(offset=offset)) + (rest > 0)


def _ends(counts: Iterable[int]) -> Chunks:
    ends = np.cumsum([0, *counts], dtype=np.int64)
    ends.flags.writeable = False  # shared by all that ask
    return ends
