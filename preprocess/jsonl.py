"""JSON lines: an object on each line, in UTF-8, zstd-compressed or not. A key is a column, a line is a row.

Such a file has no footer, so it is read through once to plan a build. Its row group `i` is the lines that begin in the
8 MiB from byte `8 MiB * i` on, decompressed: a place that every process computes for itself, so nothing of that reading
has to be kept. A line is what Python's json makes of it; a blank one is none; a key that is missing is a null. A byte
order mark is passed over at the start of a file, where some editors write it and it says nothing, and nowhere else.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Event
from typing import Any

from preprocess.batches import BATCH_BYTES, Rows, split
from preprocess.footer import BadFileError, Footer, RowGroup, unreadable
from preprocess.jsonblock import are_null, count_rows, each_row, read_block
from preprocess.jsonline import Kind, LineError, kind_of, stored_text
from preprocess.lines import Lines, OpenStream, lines_from
from shared.terminal import safe_text

GROUP_BYTES = 8 << 20
HEAD_BYTES = 256 << 10
MIN_TEXT_SHARE = 0.5
MAX_SHOWN = 20


@dataclass(frozen=True)
class JsonLines:
    """Reads JSON lines of which `open_stream` gives the bytes, as `sources` says."""

    open_stream: OpenStream
    has_footer = False

    def read_footer(self, path: Path, root: Path, column: str, others: Sequence[str], stop: Event, /) -> Footer:
        """What a first reading of the file finds, the columns looked for in its first row group with rows."""
        digest, groups, text_share = hashlib.sha256(), list[RowGroup](), 0.0
        with closing(Lines(self.open_stream, path, digest=digest)) as lines:
            lines.check()
            while not lines.is_at_end():
                if stop.is_set():
                    raise CancelledError
                at, block = lines.position, lines.take((len(groups) + 1) * GROUP_BYTES)
                num_rows = count_rows(block)
                if num_rows and not text_share:
                    with _naming_lines(lines, at):
                        text_share = _look_into(path, block, column, others)
                groups.append(RowGroup(num_rows, round(len(block) * text_share)))
            num_rows, relative = sum(group.num_rows for group in groups), path.relative_to(root).as_posix()
            return Footer(relative, lines.num_stored, num_rows, digest.hexdigest(), tuple(groups))

    def has_column(self, path: Path, name: str, /) -> bool:  # noqa: ARG002 (as any reader)
        """A key that is missing is a null."""
        return True

    def read_rows(
        self, path: Path, row_groups: range, column: str, others: Sequence[str], max_batch_bytes: int, /
    ) -> Iterator[Rows]:
        """Rows in order; the other columns are of the kind that their first value in the file has."""
        with lines_from(self.open_stream, path, row_groups.start * GROUP_BYTES) as lines:
            first = _first_kinds(self.open_stream, path, lines.version, tuple(others)) if others else {}
            kinds: dict[str, Kind] = {name: "string" if name == column else first.get(name, "null") for name in others}
            for group in row_groups:
                at, block = lines.position, lines.take((group + 1) * GROUP_BYTES)
                with _naming_lines(lines, at):
                    rows = read_block(block, column, kinds)
                yield from split(rows, max_batch_bytes)

    def identity(self, path: Path, /) -> str:
        """Of the whole file."""
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise unreadable(path, error) from None

    def read_columns(self, path: Path, row_groups: range, column: str, names: Sequence[str], /) -> Iterator[Any]:
        """Every line is read for it, whole."""
        for _, others in self.read_rows(path, row_groups, column, names, BATCH_BYTES):
            yield others

    def nearest_group(self, path: Path, row_groups: range, first_row: int, row: int, /) -> tuple[int, int]:  # noqa: ARG002
        """How many lines a row group has is not known before it is read."""
        return row_groups.start, first_row


def _look_into(path: Path, block: bytes, column: str, others: Sequence[str]) -> float:
    """About which part of the lines is text, by the first of `block`, in which the columns must be.

    At least a half, so that a file that begins with little text cannot make shards that are far too large.
    """
    missing, found = dict.fromkeys((column, *others)), dict[str, None]()
    num_rows = text_bytes = line_bytes = 0
    for line, (text, names) in each_row(block, lambda row: (stored_text(row, column), list(row))):
        found.update(dict.fromkeys(names))
        num_rows, text_bytes, line_bytes = num_rows + 1, text_bytes + len((text or "").encode()), line_bytes + len(line)
        if line_bytes >= HEAD_BYTES and missing.keys() <= found.keys():
            break
    for name in missing:
        if name not in found:
            columns = ", ".join([*list(found)[:MAX_SHOWN], *(["..."] if len(found) > MAX_SHOWN else [])])
            remedy = "name the text with --text-column" if name == column else "name columns that every file has"
            reason = f"has no column {name!r} in its first {num_rows:,} rows (they have {columns or 'none'})"
            raise BadFileError(path, safe_text(reason), remedy)
    return min(max(text_bytes / line_bytes, MIN_TEXT_SHARE), 1)


@lru_cache(maxsize=1000)
def _first_kinds(
    open_stream: OpenStream, path: Path, _version: tuple[int, ...], names: tuple[str, ...]
) -> dict[str, Kind]:
    """The kind of the first value in the file of each column; none of a column that has only nulls.

    It is asked of the file and not of a block, so that all blocks, whoever reads them, give a column the same type.
    """
    kinds: dict[str, Kind] = {}
    with closing(Lines(open_stream, path)) as lines:
        while len(kinds) < len(names) and not lines.is_at_end():
            at, block = lines.position, lines.take(lines.position + GROUP_BYTES)
            unknown = [name for name in names if name not in kinds]
            if at and are_null(block, unknown):
                continue
            with _naming_lines(lines, at):
                for _, row in each_row(block, lambda row: row):
                    values = {name: row[name] for name in unknown if row.get(name) is not None}
                    kinds = {name: kind_of(value) for name, value in values.items()} | kinds
                    if len(kinds) == len(names):
                        break
    return kinds


@contextmanager
def _naming_lines(lines: Lines, at: int) -> Iterator[None]:
    """Meanwhile, what is wrong with a line of the block from `at` on is told as what is wrong with the file.

    Raises: BadFileError that names the line, counted from 1 as editors do.
    """
    try:
        yield
    except LineError as error:
        number = lines.count_before(at) + error.number + 1
        raise BadFileError(lines.path, f"line {number:,} {error.reason}", error.remedy, ": ") from None
