"""Documents of a dataset by their input rows, and rows by what is in them; of the inputs no more is read than that."""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from preprocess.config import num_cores
from preprocess.finding import Search, spoken, with_name, with_text
from preprocess.inputs import Inputs
from preprocess.sources import has_column, nearest_group, read_columns
from shared.errors import FormatError, InputError
from shared.format import open_documents, read_index
from shared.rows import InputRows, number_of
from shared.terminal import safe_text

NAMES = ("id", "url", "date")
"""Columns that are told of a document, where a file has them."""

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
        self.inputs = Inputs(tokens, self.index, data)
        self._offsets = lru_cache(maxsize=16)(partial(open_documents, tokens, self.index))

    def of_rows(self, rows: Iterable[Row]) -> Iterator[Document]:
        """The documents of some rows, each once, in the order of the dataset.

        Raises: FormatError if there is no such row; BadFileError if a file cannot be read.
        """
        wanted: dict[int, set[int]] = defaultdict(set)
        for path, row in rows:
            place = self.rows.shard_row(path, row)
            wanted[place.shard].add(place.row)
        for shard in sorted(wanted):
            source = self.index.shards[shard].source
            problem = self.inputs.problem(source)
            rows_of_shard = sorted(wanted[shard])
            told = {} if problem else self._columns(shard, rows_of_shard)
            for row in rows_of_shard:
                yield self._document(shard, row, told.get(row, {}), problem)

    def find(self, wanted: str) -> list[Document]:
        """The documents that have `wanted` as their id or url; if none has, those in whose text it stands.

        Raises: InputError if none has, or not all that may have it can be read.
        """
        is_utf8 = wanted.encode(errors="ignore").decode() == wanted
        if not wanted or not is_utf8:
            raise InputError(f"'{safe_text(wanted)}' names no document: an id, a url or a piece of its text is wanted")
        sources = [number for number in range(len(self.index.sources)) if self._groups(number)]
        unread = [problem for number in sources if (problem := self.inputs.problem(number))]
        readable = [number for number in sources if not self.inputs.problem(number)]
        with ThreadPoolExecutor(num_cores()) as pool:
            for search in (with_name, with_text):
                found = [row for rows in pool.map(partial(self._search, search, wanted), readable) for row in rows]
                if found:
                    return list(self.of_rows(found))
        shown = safe_text(wanted if len(wanted) <= 60 else wanted[:57] + "...")
        if unread:
            raise InputError(f"no document '{shown}' in what can be read: {unread[0]} ({len(unread)} such files)")
        raise InputError(
            f"no document of {safe_text(str(self.tokens))} has the id or url '{shown}', or that in its text: give "
            "one as it stands in the inputs, or FILE:ROW"
        )

    def _document(self, shard: int, within: int, told: dict[str, Any], problem: str | None) -> Document:
        place = self.index.shards[shard]
        offsets = self._offsets(shard)
        size = int(offsets[within + 1]) - int(offsets[within])
        columns = {name: None if value is None else spoken(value) for name, value in told.items()}
        return Document(
            self.index.sources[place.source].path, place.first_row + within, size, **columns, problem=problem
        )

    def _columns(self, shard: int, within: Sequence[int]) -> dict[int, dict[str, Any]]:
        """What the columns say of some rows of a shard, ascending."""
        place = self.index.shards[shard]
        path = self.inputs.path(place.source)
        if not (names := [name for name in NAMES if has_column(path, name)]):
            return {}
        groups = range(place.first_row_group, place.first_row_group + place.num_row_groups)
        starts: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row in within:
            starts[nearest_group(path, groups, 0, row)].append(row)
        told: dict[int, dict[str, Any]] = {}
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
            ends[source] = range(max(ends.get(source, range(0)).stop, first + count))
        return ends

    def _search(self, search: Search, wanted: str, number: int) -> list[Row]:
        rows = search(self.inputs.path(number), self._groups(number), self.index.text_column, wanted)
        return [(self.index.sources[number].path, row) for row in rows]


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


def parse_row(name: str) -> Row:
    """The row that FILE:ROW names.

    >>> parse_row("a/b.parquet:17")
    ('a/b.parquet', 17)

    Raises: FormatError if that is no name of a row.
    """
    source, colon, row = name.rpartition(":")
    number = number_of(row)
    if not colon or number is None:
        raise FormatError(f"'{safe_text(name[:60])}' names no row: FILE:ROW is wanted, as in 000_00000.parquet:17")
    return source, number


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
        raise FormatError(f"""'{shown}' names no row: a line like {{"source": "a.parquet", "row": 17}} is wanted""")
    return source, row


def tell(tokens: Path, data: str | None, names: Sequence[str], find: str | None) -> None:
    """Print a line of JSON for each document that is asked for.

    Raises: UserError for what cannot be found.
    """
    documents = Documents(tokens, data)
    if find is not None:
        found: Iterable[Document] = documents.find(find)
    else:
        rows = [row for name in names for row in (map(parse_line, sys.stdin) if name == "-" else [parse_row(name)])]
        found = documents.of_rows(rows)
    for document in found:
        print(json.dumps(asdict(document)))
