"""Which documents are in which chunks, by arithmetic on the index: nothing is written down for it while training."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from train.datasets import Datasets
from train.sequences import Spans


@dataclass(frozen=True)
class Part:
    """Of a document that is in a chunk: its ids `start` to `stop`, of `num_tokens` with that which ends it.

    An id is in the chunk as an input, a target or, mostly, both.
    """

    source: str
    row: int
    start: int
    stop: int
    num_tokens: int
    place: int
    """Where it begins among the chunk's inputs; the length of the chunk if it has only the target behind them."""


class Provenance:
    """The documents of the datasets of a run, in one numbering of their shards."""

    def __init__(self, datasets: Datasets) -> None:
        self._index = datasets.index
        self._open = lru_cache(maxsize=16)(datasets.open_documents)

    def documents(self, spans: Spans) -> list[dict[str, Any]]:
        """Input file, and first and last row there, of the documents in each of some spans of ids.

        Raises: FormatError if a shard's documents are not what the index says.
        """
        return [self._rows(*map(int, span)) for span in zip(spans.shards, spans.starts, spans.sizes, strict=True)]

    def parts(self, spans: Spans) -> list[list[Part]]:
        """The parts of documents in each of the chunks that the spans are of, in the order in which they are read.

        Raises: as `documents`.
        """
        chunks: list[list[Part]] = [[] for _ in range(int(spans.rows.max(initial=-1)) + 1)]
        for shard, start, size, chunk, place in zip(*(column.tolist() for column in spans), strict=True):
            chunks[chunk] += self._parts(shard, range(start, start + size), place)
        return chunks

    def ids(self, number: int, row: int) -> range:
        """The ids of shard `number` that are the document of its row `row`, counted from the shard's first."""
        start, stop = self._open(number)[row : row + 2].tolist()
        return range(start, stop)

    def _parts(self, number: int, span: range, place: int) -> Iterator[Part]:
        shard, offsets = self._index.shards[number], self._open(number)
        source = self._index.sources[shard.source].path
        first, last = rows_of(offsets, span.start, len(span))
        for row, (begin, end) in enumerate(pairwise(offsets[first : last + 2].tolist()), first):
            start, stop = max(begin, span.start), min(end, span.stop)
            if start < stop:
                at = place + start - span.start
                yield Part(source, shard.first_row + row, start - begin, stop - begin, end - begin, at)

    def _rows(self, number: int, start: int, size: int) -> dict[str, Any]:
        shard = self._index.shards[number]
        rows = [shard.first_row + row for row in rows_of(self._open(number), start, size)]
        return {"source": self._index.sources[shard.source].path, "rows": rows}


def rows_of(offsets: npt.NDArray[np.uint64], start: int, size: int) -> tuple[int, int]:
    """First and last row that have any of `size` ids from `start` on; row i has those from offsets[i] on.

    >>> rows_of(np.array([0, 4, 4, 9], np.uint64), 3, 2)  # the second row is empty
    (0, 2)
    """
    ends = np.array([start, start + size - 1], np.uint64)
    first, last = (np.searchsorted(offsets, ends, side="right") - 1).tolist()
    return first, last
