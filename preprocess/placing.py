"""Pure: where the documents of a shard start -> the chunks of a packing. A function of lengths and settings alone.

The unit is a target. A document of n ids, its end-of-document id included, has n - 1 of them: every id but its first,
each with the id before it as its input. So no target is of another document than its input.

A piece is a part of one document that goes into one chunk. A document of more than `length` targets is cut into pieces
of `length` and a remainder; the pieces are placed largest first, each into the chunk with the least room that holds it.

Source: best-fit decreasing, D. S. Johnson, Near-optimal bin packing algorithms, 1973; of documents that are cut into
fragments first: Ding et al., Fewer Truncations Improve Language Modeling, arXiv 2404.10830.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from shared.packing import CHUNK_DTYPE, PIECE_DTYPE

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Placed:
    """The chunks of one shard in the order of their first pieces, which is about that of the documents.

    `chunks` and `pieces` are as they are stored; `left_out` has the number of targets of each document without a piece.
    """

    chunks: npt.NDArray
    pieces: npt.NDArray
    left_out: Integers


def place_documents(offsets: Integers, length: int, *, whole: bool) -> Placed:
    """The documents between each two of `offsets` in chunks of up to `length` targets.

    With `whole`, a document of more than `length` targets is left out instead of cut.

    >>> placed = place_documents(np.array([0, 7, 7, 10, 12]), 4, whole=False)  # documents of 6, 2 and 1 targets
    >>> placed.pieces["start"].tolist(), placed.pieces["place"].tolist(), placed.chunks["num_targets"].tolist()
    ([0, 4, 7, 10], [0, 0, 2, 0], [4, 4, 1])
    """
    first, num_targets = offsets[:-1], np.maximum(np.diff(offsets) - 1, 0)
    too_long = num_targets > length if whole else np.zeros(len(first), np.bool_)
    starts, sizes = cut(first[~too_long], num_targets[~too_long], length)
    chunk_of, num_chunks = best_fit(sizes, length)
    return Placed(*_in_order(starts, sizes, chunk_of, num_chunks), num_targets[too_long])


def cut(first: Integers, num_targets: Integers, length: int) -> tuple[Integers, Integers]:
    """Start and number of targets of each piece of the documents that start at `first`, in their order.

    >>> cut(np.array([0, 9]), np.array([8, 5]), 4)
    (array([ 0,  4,  9, 13]), array([4, 4, 4, 1]))
    """
    num_pieces = -(-num_targets // length)
    before = np.cumsum(num_pieces) - num_pieces  # pieces of the documents before
    skipped = length * (np.arange(num_pieces.sum()) - np.repeat(before, num_pieces))
    return np.repeat(first, num_pieces) + skipped, np.minimum(np.repeat(num_targets, num_pieces) - skipped, length)


def best_fit(sizes: Integers, length: int) -> tuple[Integers, int]:
    """The chunk of each piece, and how many there are: best-fit decreasing.

    Of pieces of one size the first goes first; of chunks with one room that which got it last is taken. Pieces of one
    size go into chunks of one room together: such a chunk takes as many as it holds, because none has less room that
    still fits. So the work is that of the different sizes and rooms, not of the pieces.

    >>> best_fit(np.array([3, 4, 1, 1]), 4)
    (array([1, 0, 1, 2]), 3)
    """
    chunk_of, num_chunks, rooms = np.empty(len(sizes), np.int64), 0, Rooms()
    for size, pieces in _by_size(sizes):
        done = 0
        while done < len(pieces):
            room = rooms.least(size)
            fitting = (room or length) // size
            wanted = -(-(len(pieces) - done) // fitting)
            taken: Sequence[int]
            if room is None:
                room, taken = length, range(num_chunks, num_chunks + wanted)
                num_chunks += wanted
            else:
                taken = rooms.take(room, wanted)
            here = pieces[done : done + len(taken) * fitting]
            chunk_of[here] = np.repeat(taken, fitting)[: len(here)]
            in_last = len(here) - (len(taken) - 1) * fitting
            rooms.add(room - fitting * size, taken[:-1])
            rooms.add(room - in_last * size, taken[-1:])
            done += len(here)
    return chunk_of, num_chunks


class Rooms:
    """Chunks by the room that they have left."""

    def __init__(self) -> None:
        self._rooms: list[int] = []  # that some chunk has, ascending
        self._chunks: dict[int, list[int]] = {}

    def least(self, size: int) -> int | None:
        """The least room that holds `size`."""
        number = bisect_left(self._rooms, size)
        return self._rooms[number] if number < len(self._rooms) else None

    def add(self, room: int, chunks: Sequence[int]) -> None:
        """These chunks have so much room now; full ones are not remembered."""
        if not room or not chunks:
            return
        if room not in self._chunks:
            insort(self._rooms, room)
            self._chunks[room] = []
        self._chunks[room].extend(chunks)

    def take(self, room: int, count: int) -> list[int]:
        """Up to `count` of the chunks with this room, that which got it last first; they are forgotten."""
        chunks = self._chunks[room]
        taken = chunks[-count:][::-1]
        del chunks[-count:]
        if not chunks:
            del self._chunks[room], self._rooms[bisect_left(self._rooms, room)]
        return taken


def _by_size(sizes: Integers) -> Iterator[tuple[int, Integers]]:
    """Each size, the largest first, and the numbers of the pieces that have it."""
    order = np.argsort(-sizes, kind="stable")
    ordered = sizes[order]
    bounds = [0, *(np.flatnonzero(np.diff(ordered)) + 1).tolist(), len(sizes)]
    for start, end in pairwise(bounds):
        if start < end:
            yield int(ordered[start]), order[start:end]


def _in_order(
    starts: Integers, sizes: Integers, chunk_of: Integers, num_chunks: int
) -> tuple[npt.NDArray, npt.NDArray]:
    """Chunks and pieces as they are stored: pieces of a chunk by their start, chunks by that of their first piece."""
    _, first_pieces = np.unique(chunk_of, return_index=True)  # pieces come by their start
    rank = np.empty(num_chunks, np.int64)
    rank[np.argsort(first_pieces)] = np.arange(num_chunks)
    chunk_of = rank[chunk_of]
    order = np.argsort(chunk_of, kind="stable")
    chunks, pieces = np.empty(num_chunks, CHUNK_DTYPE), np.empty(len(starts), PIECE_DTYPE)
    chunks["num_pieces"] = np.bincount(chunk_of, minlength=num_chunks)
    chunks["num_targets"] = np.bincount(chunk_of, sizes, num_chunks)
    chunks["first_piece"] = np.cumsum(chunks["num_pieces"]) - chunks["num_pieces"]
    ordered = sizes[order]
    before = np.cumsum(ordered) - ordered  # targets of all pieces before
    pieces["start"] = starts[order]
    pieces["place"] = before - np.repeat(before[chunks["first_piece"]], chunks["num_pieces"])
    return chunks, pieces
