"""Which documents are in which chunks, by arithmetic on the index: nothing is written down for it while training."""

from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.format import Index, open_documents
from train.sequences import Spans


class Provenance:
    """The documents of one dataset."""

    def __init__(self, tokens: Path, index: Index) -> None:
        self._index = index
        self._open = lru_cache(maxsize=16)(partial(open_documents, tokens, index))

    def documents(self, spans: Spans) -> list[dict[str, Any]]:
        """Input file, and first and last row there, of the documents in each of some spans of ids.

        Raises: FormatError if a shard's documents are not what the index says.
        """
        return [self._rows(*map(int, span)) for span in zip(spans.shards, spans.starts, spans.sizes, strict=True)]

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
