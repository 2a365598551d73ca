"""A file's bytes, zstd-compressed or not, forwards from some place on: `position` counts what comes out, not in."""

import io
import os
from pathlib import Path
from typing import Any, Protocol

import zstandard

from preprocess.footer import DAMAGED, BadFileError, unreadable
from preprocess.frames import check_frames, frame_before

MAX_WINDOW_BYTES = 1 << 31  # the most that `zstd --long` makes
PIECE_BYTES = 1 << 20
FOREIGN = {
    b"\x1f\x8b": ("is gzip-compressed", "decompress it, or compress it with zstd and name it .jsonl.zst"),
    b"\x28\xb5\x2f\xfd": ("is zstd-compressed", "name it .jsonl.zst"),
    b"PAR1": ("is a parquet file", "name it .parquet"),
}


class Stored(io.FileIO):
    """The file at `path` as it is stored; `digest`, if there is one, is updated with what is read.

    Raises: BadFileError if the system does not give it.
    """

    def __init__(self, path: Path, digest: Any | None = None) -> None:
        self.path, self._digest = path, digest
        try:
            super().__init__(path)
        except OSError as error:
            raise unreadable(path, error) from None

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, up to `size` and at least one; none at the end."""
        try:
            piece = super().read(size)
        except OSError as error:
            raise unreadable(self.path, error) from None
        if self._digest is not None:
            self._digest.update(piece)
        return piece


class Stream(Protocol):
    """What the bytes of a file come from."""

    position: int

    def read(self) -> bytes:
        """The next bytes; none at the end."""

    def check(self) -> None:
        """Nothing, if this is the kind of file that it was opened as, and not cut short."""


class Plain:
    """A file that is not compressed: it is read from `start`."""

    def __init__(self, stored: Stored, start: int = 0) -> None:
        self.stored, self.position = stored, start
        stored.seek(start)

    def read(self) -> bytes:
        """The next bytes; none at the end."""
        piece = self.stored.read(PIECE_BYTES)
        self.position += len(piece)
        return piece

    def check(self) -> None:
        """Nothing, unless it is a file of another kind by its first bytes."""
        head = os.pread(self.stored.fileno(), 4, 0)
        for magic, (reason, remedy) in FOREIGN.items():
            if head.startswith(magic):
                raise BadFileError(self.stored.path, reason, remedy)


class Zstd:
    """A zstd file: it is read from the start of the last frame that is known to begin at or before `start`."""

    def __init__(self, stored: Stored, start: int = 0) -> None:
        self.stored, self.position = stored, 0
        if start:
            offset, self.position = frame_before(stored.path, stored.fileno(), start)
            stored.seek(offset)
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
        self._reader = decompressor.stream_reader(stored, read_across_frames=True)

    def read(self) -> bytes:
        """The next bytes; none at the end."""
        try:
            piece = self._reader.read(PIECE_BYTES)
        except zstandard.ZstdError as error:
            reason = str(error).removeprefix("zstd decompress error: ")
            reason = f"cannot be decompressed after {self.position:,} decompressed bytes ({reason})"
            raise BadFileError(self.stored.path, reason, DAMAGED) from None
        self.position += len(piece)
        return piece

    def check(self) -> None:
        """Nothing, if it is whole frames end to end."""
        check_frames(self.stored.path, self.stored.fileno())
