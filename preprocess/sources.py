"""The input: which files, in which order, what each holds, and its rows in bounded batches.

The order of the files is the order of the training data, so it is a total order over relative paths that does not
depend on the file system. What kind of file it is, its ending says; that is asked here and nowhere else.
"""

import glob
import re
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, Protocol

from preprocess.batches import BATCH_BYTES, Rows
from preprocess.config import num_cores
from preprocess.footer import BadFileError, Footer, RowGroup
from preprocess.jsonl import JsonLines
from preprocess.parquet import Parquet
from preprocess.streams import Plain, Zstd
from shared.errors import InputError
from shared.terminal import safe_text

__all__ = [
    "BadFileError",
    "Footer",
    "RowGroup",
    "Rows",
    "file_identity",
    "find_sources",
    "has_column",
    "has_footer",
    "natural_key",
    "nearest_group",
    "read_columns",
    "read_footer",
    "read_rows",
    "read_texts",
    "try_footers",
]


class Reader(Protocol):
    """How files of one kind are read; the functions of the same names below say what is given and raised."""

    has_footer: bool

    def read_footer(self, path: Path, root: Path, column: str, others: Sequence[str], stop: Event, /) -> Footer:
        """As `read_footer`; a reading that takes long ends when `stop` is set."""

    def has_column(self, path: Path, name: str, /) -> bool:
        """As `has_column`."""

    def read_rows(
        self, path: Path, row_groups: range, column: str, others: Sequence[str], max_batch_bytes: int, /
    ) -> Iterator[Rows]:
        """As `read_rows`."""

    def identity(self, path: Path, /) -> str:
        """As `file_identity`."""

    def read_columns(self, path: Path, row_groups: range, column: str, names: Sequence[str], /) -> Iterator[Any]:
        """As `read_columns`."""

    def nearest_group(self, path: Path, row_groups: range, first_row: int, row: int, /) -> tuple[int, int]:
        """As `nearest_group`."""


READERS: dict[str, Reader] = {".parquet": Parquet(), ".jsonl": JsonLines(Plain), ".jsonl.zst": JsonLines(Zstd)}
WANTED = "*.parquet, *.jsonl or *.jsonl.zst file"


def find_sources(data: str) -> tuple[Path, list[Path]]:
    """The directory that paths are relative to, and the input files of `data` (directory, glob or file) in order.

    Raises: InputError if there is nothing of that name, or no input file in it.
    """
    path = Path(data)
    if path.is_dir():
        root, found = path, path.rglob("*")
    elif path.is_file():
        if not path.name.endswith(tuple(READERS)):
            raise InputError(f"{safe_text(data)} is no {WANTED}: give it the ending of what it is")
        return path.parent, [path]
    elif glob.has_magic(data):
        root = _fixed_part(path)
        found = root.glob(str(path.relative_to(root)))
    else:
        raise InputError(f"{safe_text(data)} not found: a directory, a glob pattern or a {WANTED} is wanted")
    inputs = (file for file in found if file.name.endswith(tuple(READERS)))
    files = [file for file in inputs if file.is_file() and not _is_hidden(file.relative_to(root))]
    if not files:
        raise InputError(f"no {WANTED} in {safe_text(data)}: name the directory that holds the text")
    _refuse_twice(files)
    return root, sorted(files, key=lambda file: natural_key(file.relative_to(root).as_posix()))


def _refuse_twice(files: Sequence[Path]) -> None:
    """Raises: InputError if a file is there compressed and not: `zstd` leaves both unless it is told not to."""
    for file in sorted(set(files) & {path.with_suffix("") for path in files if path.suffix == ".zst"}):
        raise InputError(
            f"{safe_text(str(file))} is there as {safe_text(file.name)}.zst too: move one of them away, or give a glob "
            "pattern for the others, as text that is there twice is read twice"
        )


def natural_key(path: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that orders the numbers in a path by value: total, whatever letters and digits are mixed.

    >>> sorted(["002_10", "002_9", "a", "000_00010", "000_00002"], key=natural_key)
    ['000_00002', '000_00010', '002_9', '002_10', 'a']
    """
    pieces = [piece for piece in re.split("([0-9]+)", path) if piece]
    return [(0, int(piece), "") if piece[0] in "0123456789" else (1, 0, piece) for piece in pieces], path


def has_footer(path: Path) -> bool:
    """Whether the file says what it holds, so that it need not be read through for that."""
    return _reader(path).has_footer


def has_column(path: Path, name: str) -> bool:
    """Whether the rows of a file can be asked for the column `name`; in JSON lines a key that is missing is a null."""
    return _reader(path).has_column(path, name)


def read_footer(path: Path, root: Path, column: str, others: Sequence[str] = ()) -> Footer:
    """What the file at `path` under `root` holds, the columns checked: text in `column`, and that there are `others`.

    Raises: BadFileError naming the file if it is damaged, not of its kind, or without such columns.
    """
    return _reader(path).read_footer(path, root, column, others, Event())


def try_footers(
    files: Sequence[Path], root: Path, column: str, others: Sequence[str] = ()
) -> Generator[Footer | BadFileError, None, None]:
    """What `read_footer` gives or raises for each of `files`, in their order; as many at once as there are cores."""
    stop = Event()

    def read(path: Path) -> Footer | BadFileError:
        try:
            return _reader(path).read_footer(path, root, column, others, stop)
        except BadFileError as error:
            return error

    pool = ThreadPoolExecutor(num_cores())
    try:
        yield from pool.map(read, files)
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def read_rows(
    path: Path, row_groups: range, column: str, others: Sequence[str] = (), max_batch_bytes: int = BATCH_BYTES
) -> Iterator[Rows]:
    """The rows of some row groups in order, in batches of at most `max_batch_bytes` of text but at least a row.

    `others` names columns that come beside the text; without any, nothing but the text is decoded. Their types are the
    same in every batch of a file: of parquet those that are stored; of JSON lines float64 for numbers, large_string,
    bool, and large_string with the JSON text of lists and objects, as the column's first value in the file is; null if
    it has none.

    Raises: BadFileError naming the file and the row group, row or line that cannot be read.
    """
    return _reader(path).read_rows(path, row_groups, column, tuple(dict.fromkeys(others)), max_batch_bytes)


def read_texts(path: Path, row_groups: range, column: str, max_batch_bytes: int = BATCH_BYTES) -> Iterator[Any]:
    """The texts of `read_rows` alone: large_string arrays of valid UTF-8, in which a null stays a null."""
    for texts, _ in read_rows(path, row_groups, column, (), max_batch_bytes):
        yield texts


def file_identity(path: Path) -> str:
    """What `Footer.identity` was if the file is as it was.

    Raises: BadFileError if it cannot be read.
    """
    return _reader(path).identity(path)


def read_columns(path: Path, row_groups: range, column: str, names: Sequence[str]) -> Iterator[Any]:
    """The record batches of `read_rows` without the text, which of parquet is not decoded for it.

    Raises: BadFileError as `read_rows`.
    """
    return _reader(path).read_columns(path, row_groups, column, names)


def nearest_group(path: Path, row_groups: range, first_row: int, row: int) -> tuple[int, int]:
    """The last of `row_groups`, of which the first begins at `first_row`, known to begin at `row` or before, and where.

    JSON lines do not say where theirs begin: there it is the first.
    """
    return _reader(path).nearest_group(path, row_groups, first_row, row)


def _reader(path: Path) -> Reader:
    for ending, reader in READERS.items():
        if path.name.endswith(ending):
            return reader
    raise AssertionError(f"{path} is no input file")


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _fixed_part(pattern: Path) -> Path:
    """The directory before the first part of `pattern` that is a pattern."""
    for parent in pattern.parents:
        if not glob.has_magic(str(parent)):
            return parent
    raise AssertionError("the root of a path has no pattern in it")
