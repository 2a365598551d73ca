"""Where documents begin in the plain stream, found in many chunks at once.

Legend: B sequences, T positions.
"""

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.cursor import Chunks
from shared.format import OFFSET_DTYPE, Index, stored_documents
from train.maps import ShardMaps
from train.sequences import spread


class Documents:
    """The documents of every shard of a dataset."""

    def __init__(self, tokens: Path, index: Index) -> None:
        self._sizes = np.array(index.column("num_rows"), np.int64) + 1
        self._maps = ShardMaps(partial(stored_documents, tokens, index), self._sizes, OFFSET_DTYPE)

    def starts(self, shards: Chunks, firsts: Chunks, length: int) -> npt.NDArray[np.int32]:
        """(B, T): where the document of each position begins, of T = `length` ids from `firsts` of the shards on.

        One that begins before them begins at 0, and what is behind the end of a shard is a document of its own.
        """
        both = np.concatenate([firsts, firsts + length - 1])
        low, high = self._rank(np.concatenate([shards, shards]), both).reshape(2, -1)
        counts = high - low
        bounds = np.concatenate([[0], np.cumsum(counts)])
        rows = np.repeat(np.arange(len(shards)), counts)
        offsets = self._maps.read(shards[rows], (low - bounds[:-1])[rows] + np.arange(len(rows))).astype(np.int64)
        return spread(np.insert(offsets - firsts[rows], bounds[:-1], 0), counts + 1, length)

    def _rank(self, shards: Chunks, places: Chunks) -> Chunks:
        """How many rows of its shard begin at each place or before it: a binary search for all of them at once.

        The first row of a shard begins at 0. What is left to search is halved alike for every outcome: no branches.
        """
        size, starts = self._maps.dtype.itemsize, self._maps.starts(shards)
        wanted, found, left = places.astype(self._maps.dtype), np.zeros_like(places), self._sizes[shards]
        for _ in range(int(left.max() - 1).bit_length()):
            half = left >> 1
            middle = found + half
            found = np.where(self._maps.at(starts + middle * size) <= wanted, middle, found)
            left -= half
        return found + 1
