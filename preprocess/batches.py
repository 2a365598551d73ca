"""Rows in batches of bounded size: the text, and beside it the other columns that were asked for."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

BATCH_BYTES = 8 << 20
NO_COLUMNS = pa.RecordBatch.from_arrays([], names=[])


class Rows(NamedTuple):
    """Consecutive rows: `texts` a large_string array of valid UTF-8, in which a null stays a null.

    `others` is a record batch with the other columns of the same rows in the order asked for, empty if there is none.
    """

    texts: Any
    others: Any


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
