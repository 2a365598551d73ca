"""Rows of an input file by what is in them: an id, a url, a piece of the text."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from preprocess.sources import has_column, read_columns, read_rows

Search = Callable[[Path, range, str, str], Iterator[int]]


def with_name(path: Path, groups: range, column: str, wanted: str) -> Iterator[int]:
    """Rows of a file whose id or url is `wanted`."""
    names = [name for name in ("id", "url") if has_column(path, name)]
    first = 0
    for batch in read_columns(path, groups, column, names) if names else ():
        for number in _rows_where(batch, wanted):
            yield first + number
        first += batch.num_rows


def _rows_where(batch: Any, wanted: str) -> list[int]:
    found = set[int]()
    for name in batch.schema.names:
        values = batch.column(name)
        if pa.types.is_float64(values.type):
            values = pa.array([None if value is None else spoken(value) for value in values.to_pylist()], pa.string())
        if not pa.types.is_null(values.type) and not pa.types.is_nested(values.type):
            found.update(pc.indices_nonzero(pc.equal(values.cast(pa.large_string()), wanted)).to_pylist())
    return sorted(found)


def with_text(path: Path, groups: range, column: str, wanted: str) -> Iterator[int]:
    """Rows of a file in whose text `wanted` stands."""
    first = 0
    for texts, _ in read_rows(path, groups, column):
        for number in pc.indices_nonzero(pc.match_substring(texts, wanted)).to_pylist():
            yield first + number
        first += len(texts)


def spoken(value: Any) -> str:
    """A value as it stands in the input: JSON has one kind of number.

    >>> spoken(17.0), spoken("x")
    ('17', 'x')
    """
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
