"""Whole lines of a file by where they begin, in memory that the longest line bounds.

All places are counted in the bytes that the stream gives, decompressed, from the start of the file.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from preprocess.footer import BadFileError
from preprocess.streams import Stored, Stream

MAX_LINE_BYTES = 1 << 30
COUNTED_BYTES = 8 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

OpenStream = Callable[[Stored, int], Stream]


class Lines:
    """The lines of the file at `path`, forwards.

    `position` is where the next one begins; before the first `skip` it may be anywhere before `start`. A byte order
    mark at the start of the file is read as spaces, which JSON allows there.
    """

    def __init__(self, open_stream: OpenStream, path: Path, start: int = 0, digest: Any | None = None) -> None:
        self.path, self._open_stream, self._stored = path, open_stream, Stored(path, digest)
        self.version = _version(os.fstat(self._stored.fileno()))
        try:
            self._stream = open_stream(self._stored, max(start - 1, 0))  # the newline before tells that a line begins
        except BadFileError:
            self.close()
            raise
        self.position, self._rest = self._stream.position, b""
        self.passed = 0  # what begins before this place was taken or skipped, and nothing that begins behind it

    def take(self, stop: int) -> bytes:
        """All lines from here on that begin before `stop`, the last one whole.

        Raises: BadFileError if the file cannot be read or has a line of more than `MAX_LINE_BYTES`.
        """
        pieces, most = [], stop + MAX_LINE_BYTES
        for piece in self._pieces(stop):
            pieces.append(piece)
            if self.position > most:
                reason = f"has a line of more than {MAX_LINE_BYTES:,} bytes (after byte {stop:,})"
                raise BadFileError(self.path, reason, "a JSON object on each line is wanted")
        return b"".join(pieces)

    def skip(self, start: int) -> None:
        """Pass over the lines that begin before `start`."""
        for _ in self._pieces(start):
            pass

    def is_at_end(self) -> bool:
        """Whether there is nothing left."""
        self._rest = self._rest or self._read()
        return not self._rest

    def check(self) -> None:
        """Nothing, if the file is of the kind that it was opened as, whole, and no JSON array.

        Raises: BadFileError if not.
        """
        self._stream.check()
        if not self.is_at_end() and self._rest.lstrip().startswith(b"["):
            raise BadFileError(self.path, "begins with a list", "a JSON object on each line is wanted")

    def count_before(self, position: int) -> int:
        """Lines that begin before `position`."""
        count = 0
        with closing(Lines(self._open_stream, self.path)) as lines:
            while lines.position < position and not lines.is_at_end():
                count += lines.take(min(lines.position + COUNTED_BYTES, position)).count(b"\n")
        return count

    @property
    def num_stored(self) -> int:
        """Bytes of the file that were read, as they are stored."""
        return self._stored.tell()

    def close(self) -> None:
        """Close the file."""
        self._stored.close()

    def _pieces(self, stop: int) -> Iterator[bytes]:
        """What stands before the first line that begins at or behind `stop`."""
        self.passed = max(self.passed, stop)
        found = 0 if self.position >= stop else -1
        while found < 0 and not self.is_at_end():
            found = self._rest.find(b"\n", max(stop - 1 - self.position, 0))
            size = len(self._rest) if found < 0 else found + 1
            piece, self._rest = self._rest[:size], self._rest[size:]
            self.position += size
            yield piece

    def _read(self) -> bytes:
        piece = self._stream.read()
        if self.position == 0 and piece.startswith(BYTE_ORDER_MARK):
            return piece.replace(BYTE_ORDER_MARK, b" " * len(BYTE_ORDER_MARK), 1)
        return piece


_left_open: list[Lines] = []  # one at most


@contextmanager
def lines_from(open_stream: OpenStream, path: Path, start: int) -> Iterator[Lines]:
    """The lines of `path` from the first that begins at or behind `start`.

    They are left open for the next call of this process: what is inside a zstd frame is reached only through all that
    stands before it, and the parts of a file are mostly read one after the other.
    """
    lines = _nearest(Lines(open_stream, path, start), start)
    try:
        lines.skip(start)
        yield lines
    except GeneratorExit:  # whoever reads has enough
        _left_open.append(lines)
        raise
    except BaseException:
        lines.close()
        raise
    else:
        _left_open.append(lines)


def _nearest(lines: Lines, start: int) -> Lines:
    """`lines`, or those left open if they are of the same file and nearer to `start`; the others are closed."""
    left = _left_open.pop() if _left_open else lines
    is_nearer = lines.position < left.position and left.passed <= start
    if left.path == lines.path and left.version == lines.version and is_nearer:
        lines, left = left, lines
    if left is not lines:
        left.close()
    return lines


def _version(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
