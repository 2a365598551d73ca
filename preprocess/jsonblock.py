"""Many lines of JSON at once: Arrow's reader, held to what Python's json says of each line.

Arrow reads values one after the other, wherever lines end, and stops at some that Python can read (a key that is there
twice, half a character in a column that nobody asked for). So its rows count only if every line begins and ends as an
object does and there are as many of them; else Python reads the block, and finds the line at fault if there is one.
What is let pass is a number `Inf` or `-NaN` in a column that nobody asked for; Python reads only `Infinity` and `NaN`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json

from preprocess.batches import NO_COLUMNS, Rows
from preprocess.jsonline import Kind, LineError, parse_line, stored_text, stored_value

WHITESPACE = b" \t\r\n"
NEWLINE, RETURN, SPACE, OPEN, CLOSE = b"\n\r {}"
FIRST_INEXACT = 2.0**53  # float64 holds every integer below
TYPES: dict[Kind, Any] = {
    "string": pa.large_string(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "nested": pa.large_string(),
    "null": pa.null(),
}

Places = npt.NDArray[np.int64]
Row = dict[str, Any]
T = TypeVar("T")


def count_rows(block: bytes) -> int:
    r"""Lines that are not blank.

    >>> count_rows(b'{"text": "a"}\n\n  \r\n{"text": "b"}')
    2
    """
    starts, ends = _line_bounds(block)
    maybe_blank = np.flatnonzero(np.frombuffer(block, np.uint8)[starts] <= SPACE)
    return len(starts) - sum(not block[starts[i] : ends[i]].strip(WHITESPACE) for i in maybe_blank)


def each_row(block: bytes, read: Callable[[Row], T]) -> Iterator[tuple[bytes, T]]:
    """Every line that is not blank, and what `read` makes of its object.

    Raises: LineError with the number of the line, counted from 0.
    """
    for number, line in enumerate(block.split(b"\n")):
        if not line.strip(WHITESPACE):
            continue
        try:
            value = read(parse_line(line))
        except LineError as error:
            error.number = number
            raise
        yield line, value


def read_block(block: bytes, column: str, kinds: Mapping[str, Kind]) -> Rows:
    """The rows of `block`, which is whole lines: the texts in `column`, and the columns named in `kinds`.

    Raises: LineError if a line cannot be read.
    """
    rows = None if "nested" in kinds.values() else _read_with_arrow(block, column, kinds)
    return _read_with_python(block, column, kinds) if rows is None else rows


def are_null(block: bytes, names: Sequence[str]) -> bool:
    """Whether it is certain that none of the columns has a value in `block`."""
    return _arrays(block, dict.fromkeys(names, TYPES["null"])) is not None


def _read_with_python(block: bytes, column: str, kinds: Mapping[str, Kind]) -> Rows:
    def read(row: Row) -> list[Any]:
        return [stored_text(row, column), *(stored_value(row, name, kind) for name, kind in kinds.items())]

    values = [value for _, value in each_row(block, read)]
    texts, *others = zip(*values, strict=True) if values else [()] * (1 + len(kinds))
    arrays = [pa.array(other, TYPES[kind]) for other, kind in zip(others, kinds.values(), strict=True)]
    return Rows(pa.array(texts, pa.large_string()), _batch(arrays, kinds))


def _read_with_arrow(block: bytes, column: str, kinds: Mapping[str, Kind]) -> Rows | None:
    """The rows, or None if that is for Python to say."""
    types = {**{name: TYPES[kind] for name, kind in kinds.items()}, column: TYPES["string"]}
    arrays = _arrays(block, types)
    return None if arrays is None else Rows(arrays[column], _batch([arrays[name] for name in kinds], kinds))


def _arrays(block: bytes, types: Mapping[str, Any]) -> dict[str, Any] | None:
    """Columns of `block` as Arrow reads them, if it is certain that Python's json would say the same."""
    num_rows = _count_objects(block)
    if not num_rows:  # Arrow does not read an empty block
        return None if num_rows is None else {name: pa.array([], kind) for name, kind in types.items()}
    if not _is_utf8(block):
        return None
    reading = json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    parsing = json.ParseOptions(explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="ignore")
    try:
        table = json.read_json(pa.BufferReader(block), reading, parsing)
    except pa.ArrowException:
        return None
    if table.num_rows != num_rows:
        return None
    arrays = {name: table.column(name).chunk(0) for name in types}
    return arrays if all(map(_is_sound, arrays.values())) else None


def _batch(arrays: Sequence[Any], kinds: Mapping[str, Kind]) -> Any:
    return pa.RecordBatch.from_arrays(arrays, names=list(kinds)) if kinds else NO_COLUMNS


def _is_sound(array: Any) -> bool:
    """Whether the values are those that stand there: characters, and no integer that was rounded."""
    if pa.types.is_float64(array.type):
        highest = pc.max(pc.abs(array)).as_py()
        return highest is None or highest < FIRST_INEXACT
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _is_utf8(block: bytes) -> bool:
    bounds = pa.py_buffer(np.array([0, len(block)], np.int64))
    return _is_sound(pa.LargeStringArray.from_buffers(1, bounds, pa.py_buffer(block)))


def _line_bounds(block: bytes) -> tuple[Places, Places]:
    """Where the lines begin, and where they end without their newline."""
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == NEWLINE)
    if block and not block.endswith(b"\n"):
        ends = np.append(ends, len(block))
    return np.concatenate([[0], ends + 1])[: len(ends)], ends


def _count_objects(block: bytes) -> int | None:
    """Lines that are not blank, if each begins with a brace and ends with one; else None.

    A newline between such lines is between two values, as no JSON value has a brace that opens behind one that closes.
    """
    chars = np.frombuffer(block, np.uint8)
    starts, ends = _line_bounds(block)
    lasts = np.maximum(ends - 1, 0)
    lasts = np.maximum(lasts - (chars[lasts] == RETURN), 0)
    odd = np.flatnonzero((chars[starts] != OPEN) | (chars[lasts] != CLOSE))
    lines = [line for i in odd if (line := block[starts[i] : ends[i]].strip(WHITESPACE))]
    if any(line[0] != OPEN or line[-1] != CLOSE for line in lines):
        return None
    return len(starts) - len(odd) + len(lines)
