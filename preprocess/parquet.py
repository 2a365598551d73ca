"""Parquet files: what their footers say, and rows of some row groups in bounded batches."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from preprocess.batches import NO_COLUMNS, Rows, split
from preprocess.footer import DAMAGED, BadFileError, Footer, RowGroup, unreadable
from shared.terminal import safe_text

MAGIC = b"PAR1"
MIN_SIZE_BYTES = 12  # magic, length of the footer, magic
MAX_BATCH_ROWS = 1024  # some 4 MB of web text: most passes over a batch find it in a cache
COLUMN_ROWS = 1 << 14  # where the text is not decoded
BUFFER_BYTES = 1 << 20  # or a column of a row group is read whole, compressed, before its first row is there


class Parquet:
    """Reads parquet files, as `sources` says."""

    has_footer = True

    def read_footer(self, path: Path, root: Path, column: str, others: Sequence[str], _stop: Event, /) -> Footer:
        """What the footer says, the columns checked."""
        identity = _footer_identity(path)
        with _open(path) as file:
            _check_columns(path, file.schema_arrow, column, others)
            metadata = file.metadata
            leaf = [metadata.schema.column(i).path for i in range(metadata.num_columns)].index(column)
            groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
            row_groups = tuple(RowGroup(group.num_rows, group.column(leaf).total_uncompressed_size) for group in groups)
            relative = path.relative_to(root).as_posix()
            return Footer(relative, path.stat().st_size, metadata.num_rows, identity, row_groups)

    def has_column(self, path: Path, name: str, /) -> bool:
        """Whether the schema has it."""
        with _open(path) as file:
            return name in file.schema_arrow.names

    def read_rows(
        self, path: Path, row_groups: range, column: str, others: Sequence[str], max_batch_bytes: int, /
    ) -> Iterator[Rows]:
        """Rows in order; the other columns are of the types that they are stored in."""
        with _open(path) as file:
            _check_columns(path, file.schema_arrow, column, others)
            first_row = sum(file.metadata.row_group(i).num_rows for i in range(row_groups.start))
            for group in row_groups:
                num_rows = file.metadata.row_group(group).num_rows
                batch_rows = max(1, min(num_rows, MAX_BATCH_ROWS))
                row = first_row
                for texts, batch in _batches(path, file, group, column, others, batch_rows):
                    _check_utf8(path, group, row, texts)
                    yield from split(Rows(texts, _others(path, group, batch, others)), max_batch_bytes)
                    row += len(texts)
                first_row += num_rows

    def identity(self, path: Path, /) -> str:
        """Of the footer."""
        return _footer_identity(path)

    def read_columns(self, path: Path, row_groups: range, _column: str, names: Sequence[str], /) -> Iterator[Any]:
        """The columns of the types that they are stored in."""
        with _open(path) as file:
            for group in row_groups:
                for batch in _stored(path, file, group, names, COLUMN_ROWS):
                    yield _others(path, group, batch, names)

    def nearest_group(self, path: Path, row_groups: range, first_row: int, row: int, /) -> tuple[int, int]:
        """The footer says it."""
        with _open(path) as file:
            for group in row_groups:
                end = first_row + file.metadata.row_group(group).num_rows
                if row < end:
                    return group, first_row
                first_row = end
        raise AssertionError(f"row {row} is in row groups {row_groups}")


def _batches(
    path: Path, file: Any, group: int, column: str, others: Sequence[str], batch_rows: int
) -> Iterator[tuple[Any, Any]]:
    """The texts of one row group, and all columns of the same rows as they are stored."""
    for batch in _stored(path, file, group, list(dict.fromkeys([column, *others])), batch_rows):
        yield batch.column(column).cast(pa.large_string()), batch


def _stored(path: Path, file: Any, group: int, columns: Sequence[str], batch_rows: int) -> Iterator[Any]:
    """Columns of one row group as they are stored."""
    try:
        yield from file.iter_batches(batch_rows, row_groups=[group], columns=list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        reason = safe_text(str(error).splitlines()[0])
        raise BadFileError(path, f"row group {group} cannot be read ({reason})", DAMAGED, ": ") from None


def _others(path: Path, group: int, batch: Any, others: Sequence[str]) -> Any:
    if not others:
        return NO_COLUMNS
    selected = batch.select(list(others))
    try:
        selected.validate(full=True)
    except pa.ArrowInvalid as error:
        reason = f"row group {group} has a value that cannot be read ({safe_text(str(error).splitlines()[0])})"
        raise BadFileError(path, reason, DAMAGED, ": ") from None
    return selected


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
        raise unreadable(path, error) from None


def _open(path: Path) -> Any:
    try:
        return pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=BUFFER_BYTES)
    except (pa.ArrowException, OSError) as error:
        reason = safe_text(str(error).splitlines()[0])
        raise BadFileError(path, f"has a damaged footer ({reason})", "download it again or move it away") from None


def _check_columns(path: Path, schema: Any, column: str, others: Sequence[str]) -> None:
    """Nothing, if the text column is one of strings and the others are there.

    Raises: BadFileError if not.
    """
    for name in (column, *others):
        remedy = "name the text with --text-column" if name == column else "name columns that every file has"
        found, wanted = [field.type for field in schema if field.name == name], safe_text(repr(name))
        if len(found) != 1:
            columns = safe_text(", ".join(schema.names))
            count = f"{len(found)} columns" if found else "no column"
            raise BadFileError(path, f"has {count} {wanted} (it has {columns})", remedy)
        if name == column and not _is_text(found[0]):
            raise BadFileError(path, f"column {wanted} is {found[0]}, not a string", remedy, ": ")


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, _is_view, pa.types.is_null))


def _is_view(kind: Any) -> bool:
    return bool(pa.types.is_string_view(kind))
