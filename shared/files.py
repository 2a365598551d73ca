"""Open files whose every call goes through `system`: a read that stumbles is repeated, a full disk is told."""

import os
from contextlib import suppress
from functools import partial
from io import SEEK_CUR, SEEK_END, SEEK_SET, BufferedRandom, BufferedReader, RawIOBase, UnsupportedOperation
from pathlib import Path
from typing import Any

from shared.system import reading, system, writing

BUFFER_BYTES = 1 << 17


class OpenFile(RawIOBase):
    """A file on the disk, from its start on; messages call it `name`."""

    def __init__(self, path: Path, flags: int, name: Path | None = None) -> None:
        super().__init__()
        self.name = name or path
        self._path, self._place, self._is_written = path, 0, bool(flags & os.O_RDWR)
        self._end = 0  # of what was written
        call = partial(system.open, path, flags)
        self._descriptor: int | None = writing(self.name, call) if self._is_written else reading(self.name, call)

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Whether it was opened for that."""
        return self._is_written

    def seekable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return reading(self.name, self._opened)

    def tell(self) -> int:
        """The place of the next byte."""
        return self._place

    def seek(self, place: int, whence: int = SEEK_SET) -> int:
        """Go to a place."""
        before = {SEEK_SET: lambda: 0, SEEK_CUR: self.tell, SEEK_END: self.size}[whence]
        self._place = before() + place
        return self._place

    def size(self) -> int:
        """Bytes in the file."""
        return reading(self.name, lambda: system.size(self._opened()))

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, or as much of it as there is left to read.

        Raises: StorageError if the file system stumbles too often.
        """
        found = reading(self.name, partial(self._read, memoryview(buffer).cast("B")))
        self._place += found
        return found

    def write(self, data: Any) -> int:
        """Write as much of `data` as the system takes at once; how much that was.

        Raises: StorageError if it takes none.
        """
        if not self._is_written:
            raise UnsupportedOperation("not writable")
        view = memoryview(data).cast("B")
        self._end = max(self._end, self._place + len(view))
        taken = writing(self.name, lambda: system.write(self._opened(), view, self._place), self._wanted())
        self._place += taken
        return taken

    def truncate(self, size: int | None = None) -> int:
        """Cut the file at `size`, or at the place of the next byte."""
        end = self._place if size is None else size
        writing(self.name, lambda: system.truncate(self._opened(), end))
        return end

    def sync(self) -> None:
        """Make what was written so far survive a loss of power."""
        writing(self.name, lambda: system.fsync(self._opened()), self._wanted())

    def close(self) -> None:
        """Close the file."""
        super().close()
        self._drop()

    def _wanted(self) -> str:
        return f"; at least {self._end:,} bytes are wanted for it" if self._end else ""

    def _opened(self) -> int:
        if self._descriptor is None:
            self._descriptor = system.open(self._path, os.O_RDONLY)
        return self._descriptor

    def _read(self, buffer: memoryview) -> int:
        try:
            return system.read(self._opened(), buffer, self._place)
        except OSError:
            if not self._is_written:
                self._drop()  # a stale handle stays stale; of what is being written no error may be lost
            raise

    def _drop(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None and self._is_written:
            writing(self.name, partial(_close, descriptor))
        elif descriptor is not None:
            system.close(descriptor)


def _close(descriptor: int) -> None:
    with suppress(InterruptedError):  # it is closed nevertheless
        system.close(descriptor)


def open_file(path: Path) -> BufferedReader:
    """The file at `path`, to be read.

    Raises: FileNotFoundError if there is none; StorageError if the file system stumbles too often.
    """
    return BufferedReader(OpenFile(path, os.O_RDONLY), BUFFER_BYTES)


def open_empty(path: Path, name: Path | None = None) -> BufferedRandom:
    """A file at `path` that is empty now, to be written in any order and read; messages call it `name`.

    Raises: StorageError if the system refuses.
    """
    return BufferedRandom(OpenFile(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, name), BUFFER_BYTES)


def read_bytes(path: Path) -> bytes:
    """Contents of the file at `path`.

    Raises: as `open_file`.
    """
    with open_file(path) as file:
        return file.read()


def size_of(path: Path) -> int:
    """Bytes in the file at `path`.

    Raises: as `open_file`.
    """
    with OpenFile(path, os.O_RDONLY) as file:
        return file.size()
