"""Documents of a dataset by their input rows, and rows by what is in them: id, url, date, a piece of the text.

Of the input files only what is asked for is read. A file that is not there any more, or is not what it was when the
dataset was made, is never read: what it would say now is not what was trained on.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from preprocess.config import num_cores
from preprocess.footer import BadFileError
from preprocess.sources import (
    file_identity,
    find_sources,
    has_column,
    nearest_group,
    read_columns,
    read_rows,
)
from shared.errors import FormatError, InputError
from shared.format import Index, open_documents, read_index
from shared.rows import InputRows
from shared.terminal import safe_text

NAMES = ("id", "url", "date")
"""Columns that are told of a document, where a file has them."""
SUFFIX = "-tokens"
MOST_ROWS = 1 << 40

Row = tuple[str, int]


@dataclass(frozen=True)
class Document:
    """An input row; `num_tokens` is 0 if it was left out of the dataset. What is not known is None."""

    source: str
    row: int
    num_tokens: int
    id: str | None = None
    url: str | None = None
    date: str | None = None
    problem: str | None = None
    """Why nothing can be said of its columns."""


class Documents:
    """The documents of the dataset in `tokens`, made of the inputs at `data` (None: where they are by default)."""

    def __init__(self, tokens: Path, data: str | None) -> None:
        self.tokens, self.index = tokens, read_index(tokens)
        self.rows = InputRows(self.index)
        self._data = data
        self._offsets = lru_cache(maxsize=16)(partial(open_documents, tokens, self.index))
        self.problem = lru_cache(maxsize=None)(self._problem)

    def of_rows(self, rows: Iterable[Row]) -> Iterator[Document]:
        """The documents of some rows, each once, in the order of the dataset.

        Raises: FormatError if there is no such row; BadFileError if a file cannot be read.
        """
        wanted: dict[int, dict[int, tuple[str, int]]] = defaultdict(dict)
        for source, row in rows:
            shard, within = self.rows.shard_row(source, row)
            wanted[shard][within] = source, row
        for shard in sorted(wanted):
            source = self.index.shards[shard].source
            problem = self.problem(source)
            within = sorted(wanted[shard])
            told = {} if problem else self._columns(shard, within)
            for row in within:
                yield self._document(shard, row, told.get(row, {}), problem)

    def find(self, wanted: str) -> list[Document]:
        """The documents that have `wanted` as their id or url; if none has, those in whose text it stands.

        Raises: InputError if none has, or not all that may have it can be read.
        """
        sources = [number for number in range(len(self.index.sources)) if self._groups(number)]
        unread = [problem for number in sources if (problem := self.problem(number))]
        readable = [number for number in sources if not self.problem(number)]
        with ThreadPoolExecutor(num_cores()) as pool:
            for search in (_with_name, _with_text):
                found = [row for rows in pool.map(partial(self._search, search, wanted), readable) for row in rows]
                if found:
                    return list(self.of_rows(found))
        shown = safe_text(wanted if len(wanted) <= 60 else wanted[:57] + "...")
        if unread:
            raise InputError(f"no document {shown!r} in what can be read: {unread[0]} ({len(unread)} such files)")
        raise InputError(
            f"no document of {safe_text(str(self.tokens))} has the id or url {shown!r}, or that in its text: give "
            "one as it stands in the inputs, or FILE:ROW"
        )

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The input files that there are. A path of the index is only looked up here, so it leads nowhere else."""
        data = self._data
        if data is None:
            name = str(self.tokens.absolute())
            if not name.endswith(SUFFIX) or not Path(name.removesuffix(SUFFIX)).is_dir():
                return {}
            data = name.removesuffix(SUFFIX)
        root, files = find_sources(data)
        return {file.relative_to(root).as_posix(): file for file in files}

    def _problem(self, number: int) -> str | None:
        """Why an input file cannot be asked, or None."""
        source = self.index.sources[number]
        path = self._files.get(source.path)
        if path is None:
            where = f"not in {self._data}" if self._data else "not found: give the inputs' directory with --data"
            return safe_text(f"{source.path} is {where}")
        try:
            if path.stat().st_size != source.size_bytes or file_identity(path) != source.identity:
                return safe_text(f"{source.path} is not what it was when the dataset was made")
        except BadFileError as error:
            return safe_text(f"{source.path} {error.reason}")
        return None

    def _document(self, shard: int, within: int, told: dict[str, Any], problem: str | None) -> Document:
        place = self.index.shards[shard]
        offsets = self._offsets(shard)
        size = int(offsets[within + 1]) - int(offsets[within])
        columns = {name: None if value is None else _spoken(value) for name, value in told.items()}
        return Document(
            self.index.sources[place.source].path, place.first_row + within, size, **columns, problem=problem
        )

    def _columns(self, shard: int, within: Sequence[int]) -> dict[int, dict[str, Any]]:
        """What the columns say of some rows of a shard, ascending."""
        place = self.index.shards[shard]
        path = self._files[self.index.sources[place.source].path]
        if not (names := [name for name in NAMES if has_column(path, name)]):
            return {}
        groups = range(place.first_row_group, place.first_row_group + place.num_row_groups)
        starts: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row in within:
            starts[nearest_group(path, groups, 0, row)].append(row)
        told = {}
        for (group, first), rows in starts.items():
            told |= _picked(read_columns(path, range(group, groups.stop), self.index.text_column, names), first, rows)
        return told

    def _groups(self, source: int) -> range:
        """The row groups of an input file that are in the dataset."""
        return self._source_groups.get(source, range(0))

    @cached_property
    def _source_groups(self) -> dict[int, range]:
        columns = [self.index.column(name) for name in ("source", "first_row_group", "num_row_groups")]
        ends: dict[int, range] = {}
        for source, first, count in zip(*columns, strict=True):
            ends[source] = range(0, max(ends.get(source, range(0)).stop, first + count))
        return ends

    def _search(self, search: "Search", wanted: str, number: int) -> list[Row]:
        source = self.index.sources[number].path
        rows = search(self._files[source], self._groups(number), self.index.text_column, wanted)
        return [(source, row) for row in rows]


Search = Callable[[Path, range, str, str], Iterator[int]]


def _with_name(path: Path, groups: range, column: str, wanted: str) -> Iterator[int]:
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
            values = pa.array([None if value is None else _spoken(value) for value in values.to_pylist()], pa.string())
        if not pa.types.is_null(values.type) and not pa.types.is_nested(values.type):
            found.update(pc.indices_nonzero(pc.equal(values.cast(pa.large_string()), wanted)).to_pylist())
    return sorted(found)


def _with_text(path: Path, groups: range, column: str, wanted: str) -> Iterator[int]:
    """Rows of a file in whose text `wanted` stands."""
    first = 0
    for texts, _ in read_rows(path, groups, column):
        for number in pc.indices_nonzero(pc.match_substring(texts, wanted)).to_pylist():
            yield first + number
        first += len(texts)


def _picked(batches: Iterator[Any], first: int, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Those of `rows`, ascending, out of batches that begin at row `first`; nothing is read behind the last."""
    told, left = {}, list(reversed(rows))
    for batch in batches:
        while left and left[-1] < first + batch.num_rows:
            row = left.pop()
            told[row] = batch.slice(row - first, 1).to_pylist()[0]
        first += batch.num_rows
        if not left:
            break
    return told


def _spoken(value: Any) -> str:
    """A value as it stands in the input: JSON has one kind of number.

    >>> _spoken(17.0), _spoken("x")
    ('17', 'x')
    """
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def parse_row(name: str) -> Row:
    """The row that FILE:ROW names.

    >>> parse_row("a/b.parquet:17")
    ('a/b.parquet', 17)

    Raises: FormatError if that is no name of a row.
    """
    source, colon, row = name.rpartition(":")
    if not colon or not row.isascii() or not row.isdecimal() or int(row) >= MOST_ROWS:
        raise FormatError(f"{safe_text(name)!r} names no row: FILE:ROW is wanted, as in 000_00000.parquet:17")
    return source, int(row)


def parse_line(line: str) -> Row:
    """The row that a line of standard input names: JSON with `source` and `row`, as this command prints it.

    Raises: FormatError if it does not.
    """
    try:
        told = json.loads(line)
        source, row = told["source"], told["row"]
    except (ValueError, TypeError, KeyError):
        source, row = None, None
    if type(source) is not str or type(row) is not int:
        shown = safe_text(line.strip()[:60])
        raise FormatError(f'{shown!r} names no row: a line like {{"source": "a.parquet", "row": 17}} is wanted')
    return source, row
