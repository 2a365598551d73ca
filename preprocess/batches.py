"""Rows in batches of bounded size: the text, and beside it the other columns that were asked for."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BATCH_BYTES = 8 << 20
NO_COLUMNS = pa.RecordBatch.from_arrays([], names=[])


class Rows(NamedTuple):
    """Consecutive rows: `texts` a large_string array of valid UTF-8, in which a null stays a null.

    `others` is a record batch with the other columns of the same rows in the order asked for, empty if there is none.
    """

    texts: Any
    others: Any


def text_sizes(texts: Any) -> npt.NDArray[np.int64]:
    """Bytes of each text of a large_string array, 0 for a null.

    >>> text_sizes(pa.array(["a", None, "\u00e9"], pa.large_string())).tolist()
    [1, 0, 2]
    """
    if not len(texts):
        return np.zeros(0, np.int64)
    sizes: npt.NDArray[np.int64] = np.diff(
        np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    )
    return np.where(texts.is_valid().to_numpy(zero_copy_only=False), sizes, 0) if texts.null_count else sizes


def split(rows: Rows, max_bytes: int) -> Iterator[Rows]:
    """`rows` cut so that no piece has more than `max_bytes` of text, but at least one row each."""
    texts, others = rows
    if not len(texts):
        return
    ends = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    start = 0
    while start < len(texts):
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + max_bytes, side="right")) - 1)
        beside = others.slice(start, stop - start) if others.num_columns else others
        yield Rows(texts.slice(start, stop - start), beside)
        start = stop
