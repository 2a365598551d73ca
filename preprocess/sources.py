"""The input: which parquet files, in which order, what their footers say, and their text in bounded batches.

The order of the files is the order of the training data, so it is a total order over relative paths that does not
depend on the file system. Only the footers are read to plan a build; text is read a row group at a time.
"""

import glob
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import InputError
from shared.terminal import safe_text

MAGIC = b"PAR1"
MIN_SIZE_BYTES = 12  # magic, length of the footer, magic
BATCH_BYTES = 8 << 20


class BadFileError(InputError):
    """An input file that cannot be read; `reason` says why without naming the directory it was found in."""

    def __init__(self, path: Path, reason: str, remedy: str, link: str = " ") -> None:
        super().__init__(f"{safe_text(str(path))}{link}{reason}: {remedy}")
        self.reason = reason


@dataclass(frozen=True)
class RowGroup:
    """A part of a parquet file that can be read alone; `text_bytes` is its text column's size before compression."""

    num_rows: int
    text_bytes: int


@dataclass(frozen=True)
class Footer:
    """What a parquet file says about itself; `path` is relative to the input, `identity` the footer's sha256."""

    path: str
    size_bytes: int
    num_rows: int
    identity: str
    row_groups: tuple[RowGroup, ...]

    @property
    def text_bytes(self) -> int:
        """Size of the text before compression, nearly (the length of each text counts too)."""
        return sum(group.text_bytes for group in self.row_groups)


def find_sources(data: str) -> tuple[Path, list[Path]]:
    """The directory that paths are relative to, and the parquet files of `data` (directory, glob or file) in order.

    Raises: InputError if there is nothing of that name, or no parquet file in it.
    """
    path = Path(data)
    if path.is_dir():
        root, found = path, list(path.rglob("*.parquet"))
    elif path.is_file():
        return path.parent, [path]
    elif glob.has_magic(data):
        root = _fixed_part(path)
        found = [file for file in root.glob(str(path.relative_to(root))) if file.suffix == ".parquet"]
    else:
        raise InputError(f"{safe_text(data)} not found: a directory, a parquet file or a glob pattern is wanted")
    files = [file for file in found if file.is_file() and not _is_hidden(file.relative_to(root))]
    if not files:
        raise InputError(f"no *.parquet file in {safe_text(data)}: name the directory that holds the text")
    return root, sorted(files, key=lambda file: natural_key(file.relative_to(root).as_posix()))


def natural_key(path: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that orders the numbers in a path by value: total, whatever letters and digits are mixed.

    >>> sorted(["002_10", "002_9", "a", "000_00010", "000_00002"], key=natural_key)
    ['000_00002', '000_00010', '002_9', '002_10', 'a']
    """
    pieces = [piece for piece in re.split("([0-9]+)", path) if piece]
    return [(0, int(piece), "") if piece[0] in "0123456789" else (1, 0, piece) for piece in pieces], path


def read_footer(path: Path, root: Path, column: str) -> Footer:
    """What the footer of the parquet file at `path` says, the text column checked.

    Raises: InputError naming the file if it is not a whole parquet file with a column of strings named `column`.
    """
    identity = _footer_identity(path)
    with _open(path) as file:
        _check_column(path, file.schema_arrow, column)
        metadata = file.metadata
        leaf = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(column)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        row_groups = tuple(RowGroup(group.num_rows, group.column(leaf).total_uncompressed_size) for group in groups)
        relative = path.relative_to(root).as_posix()
        return Footer(relative, path.stat().st_size, metadata.num_rows, identity, row_groups)


def read_texts(path: Path, row_groups: range, column: str, max_batch_bytes: int = BATCH_BYTES) -> Iterator[Any]:
    """Texts of some row groups in row order, as large_string arrays of about `max_batch_bytes` that are valid UTF-8.

    A null stays a null; a text longer than `max_batch_bytes` is a batch of its own.

    Raises: InputError naming file, row group and, where it can be told, row of what cannot be read.
    """
    with _open(path) as file:
        first_row = sum(file.metadata.row_group(i).num_rows for i in range(row_groups.start))
        for group in row_groups:
            num_rows = file.metadata.row_group(group).num_rows
            batch_rows = max(1, min(num_rows, 4096))
            row = first_row
            for texts in _group_texts(path, file, group, column, batch_rows):
                _check_utf8(path, group, row, texts)
                yield from _split(texts, max_batch_bytes)
                row += len(texts)
            first_row += num_rows


def _group_texts(path: Path, file: Any, group: int, column: str, batch_rows: int) -> Iterator[Any]:
    batches = file.iter_batches(batch_rows, row_groups=[group], columns=[column], use_threads=False)
    try:
        for batch in batches:
            yield batch.column(0).cast(pa.large_string())
    except (pa.ArrowException, OSError) as error:
        reason = safe_text(str(error).splitlines()[0])
        remedy = "the file is damaged; download it again or move it away"
        raise BadFileError(path, f"row group {group} cannot be read ({reason})", remedy, ": ") from None


def _check_utf8(path: Path, group: int, first_row: int, texts: Any) -> None:
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        row = first_row + next(i for i, text in enumerate(texts.view(pa.large_binary())) if not _is_utf8(text.as_py()))
        remedy = "write the file again with its text decoded, or move it away"
        raise BadFileError(path, f"row {row} (row group {group}) is not valid UTF-8", remedy, ": ") from None


def _is_utf8(text: bytes | None) -> bool:
    try:
        (text or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _split(texts: Any, max_bytes: int) -> Iterator[Any]:
    """Slices of `texts` of at most `max_bytes`, but at least one text each."""
    if not len(texts):
        return
    ends = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    start = 0
    while start < len(texts):
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + max_bytes, side="right")) - 1)
        yield texts.slice(start, stop - start)
        start = stop


def _footer_identity(path: Path) -> str:
    """Hex sha256 of the serialized footer, which holds the offset, size and statistics of every part of the file."""
    remedy = "download it again or move it away"
    try:
        size_bytes = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(len(MAGIC))
            if not size_bytes:
                raise BadFileError(path, "is empty (0 bytes)", f"a parquet file is wanted; {remedy}")
            if head != MAGIC:
                raise BadFileError(path, f"is not a parquet file (begins with {head!r}, not {MAGIC!r})", remedy)
            file.seek(max(0, size_bytes - 8))
            tail = file.read()
            length = int.from_bytes(tail[:4], "little")
            if tail[4:] != MAGIC or not 0 < length <= size_bytes - MIN_SIZE_BYTES:
                raise BadFileError(path, f"is cut short (no parquet footer at the end of {size_bytes:,} bytes)", remedy)
            file.seek(size_bytes - 8 - length)
            return hashlib.sha256(file.read(length)).hexdigest()
    except OSError as error:
        raise BadFileError(path, f"cannot be read ({error.strerror})", "check the path and its permissions") from None


def _open(path: Path) -> Any:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        reason = safe_text(str(error).splitlines()[0])
        raise BadFileError(path, f"has a damaged footer ({reason})", "download it again or move it away") from None


def _check_column(path: Path, schema: Any, column: str) -> None:
    remedy, wanted = "name the text with --text-column", safe_text(repr(column))
    found = [field.type for field in schema if field.name == column]
    if len(found) != 1:
        columns = safe_text(", ".join(schema.names))
        count = f"{len(found)} columns" if found else "no column"
        raise BadFileError(path, f"has {count} {wanted} (it has {columns})", remedy)
    if not _is_text(found[0]):
        raise BadFileError(path, f"column {wanted} is {found[0]}, not a string", remedy, ": ")


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, _is_view, pa.types.is_null))


def _is_view(kind: Any) -> bool:
    return bool(pa.types.is_string_view(kind))


def _is_hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _fixed_part(pattern: Path) -> Path:
    """The directory before the first part of `pattern` that is a pattern."""
    for parent in pattern.parents:
        if not glob.has_magic(str(parent)):
            return parent
    raise AssertionError("the root of a path has no pattern in it")
