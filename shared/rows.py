"""Which shard an input row is in, and which of the shard's ids are its document."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shared.errors import FormatError
from shared.format import Index
from shared.terminal import safe_text

Numbers = npt.NDArray[np.int64]
MOST_DIGITS = 18  # of a number that numpy holds


def number_of(digits: str) -> int | None:
    """The number that a user has written; None if it is none, or longer than what anything is counted to.

    >>> number_of("17"), number_of("-17"), number_of("1_7"), number_of("9" * 19)
    (17, None, None, None)
    """
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= MOST_DIGITS else None


class ShardRow(NamedTuple):
    """A row of a shard, counted from the shard's first."""

    shard: int
    row: int


class InputRows:
    """The input rows of a dataset, by source and number there."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.sources = {source.path: number for number, source in enumerate(index.sources)}
        columns: list[Numbers] = [
            np.array(index.column(name), np.int64) for name in ("source", "first_row", "num_rows")
        ]
        source, first, count = columns
        self._shards = np.flatnonzero(count)
        order = np.lexsort((first[self._shards], source[self._shards]))
        self._shards = self._shards[order]
        self._source, self._first, self._count = source[self._shards], first[self._shards], count[self._shards]

    def source(self, path: str) -> int:
        """The number of the input file that the index calls `path`.

        Raises: FormatError if there is none.
        """
        if path not in self.sources:
            raise FormatError(
                f"{safe_text(path)} is no input of the dataset {self._index.fingerprint[:12]} (it has "
                f"{len(self.sources):,} files): name one as `python -m preprocess inspect` does"
            )
        return self.sources[path]

    def shard_row(self, path: str, row: int) -> ShardRow:
        """Where row `row` of the input file `path` is.

        Raises: FormatError if there is no such row.
        """
        source = self.source(path)
        low, high = np.searchsorted(self._source, [source, source + 1]).tolist()
        number = low + int(np.searchsorted(self._first[low:high], row, side="right")) - 1
        if number < low or not 0 <= row - int(self._first[number]) < int(self._count[number]):
            raise FormatError(
                f"{safe_text(path)} has no row {row:,} in the dataset: it has {self._index.sources[source].num_rows:,}"
                ", counted from 0"
            )
        return ShardRow(int(self._shards[number]), row - int(self._first[number]))
