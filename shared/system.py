"""What both programs ask of the operating system for their files: each call in one place, so that tests make it fail.

A file system far away stumbles now and then, so what opens or reads is asked again a few times; nothing that writes
is, because after a failed write nobody knows what the disk holds. What is refused for good is told in one line.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from shared.errors import StorageError
from shared.terminal import safe_text

STUMBLES = (errno.EINTR, errno.ESTALE, errno.EIO)
TRIES = 4
PAUSE_S = 0.01  # doubled each time
NO_ROOM = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "delete something of yours there or ask for a larger quota",
    errno.EFBIG: "allow larger files (`ulimit -f`)",
}
T = TypeVar("T")


class System:
    """One method for each call. `place` counts bytes from the start of a file."""

    def open(self, path: Path, flags: int) -> int:
        """A descriptor, which programs started from here do not inherit."""
        return os.open(path, flags | os.O_CLOEXEC, 0o666)

    def close(self, descriptor: int) -> None:
        """Give a descriptor back."""
        os.close(descriptor)

    def read(self, descriptor: int, buffer: memoryview, place: int) -> int:
        """Fill as much of `buffer` as there is; how much that was."""
        return os.preadv(descriptor, [buffer], place)

    def write(self, descriptor: int, data: memoryview, place: int) -> int:
        """Write as much of `data` as the system takes at once; how much that was."""
        return os.pwrite(descriptor, data, place)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Cut or extend a file."""
        os.ftruncate(descriptor, size_bytes)

    def size(self, descriptor: int) -> int:
        """Bytes in an open file."""
        return os.fstat(descriptor).st_size

    def fsync(self, descriptor: int) -> None:
        """Make a file, or the names in a directory, survive a loss of power."""
        os.fsync(descriptor)

    def lock(self, descriptor: int, how: int) -> None:
        """Lock an open file; it stays locked until it is closed or its process ends."""
        fcntl.flock(descriptor, how)

    def stat(self, path: Path) -> os.stat_result:
        """What is known of a path; links are followed."""
        return path.stat()

    def lstat(self, path: Path) -> os.stat_result:
        """What is known of a path itself, link or not."""
        return path.lstat()

    def listing(self, directory: Path) -> list[str]:
        """Names in a directory, in order."""
        return sorted(path.name for path in directory.iterdir())

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or directory another name, in place of what had it."""
        old.replace(new)

    def unlink(self, path: Path) -> None:
        """Delete a file."""
        path.unlink()

    def mkdir(self, directory: Path) -> None:
        """Make a directory."""
        directory.mkdir()

    def rmdir(self, directory: Path) -> None:
        """Delete an empty directory."""
        directory.rmdir()


system = System()


def reading(path: Path, call: Callable[[], T]) -> T:
    """What `call`, which opens or reads `path`, returns; a file system that stumbles is asked again.

    Raises: StorageError if it stumbles each of `TRIES` times; any other OSError at once.
    """
    error = OSError()
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_S * 2**attempt)
        try:
            return call()
        except OSError as found:
            if found.errno not in STUMBLES:
                raise
            error = found
    raise StorageError(
        f"{safe_text(str(path))} cannot be read ({error.strerror}, {TRIES} times in a row): look at the disk or the "
        "network it is on, then run the same command again"
    ) from None


def writing(path: Path, call: Callable[[], T], wanted: str = "") -> T:
    """What `call`, which changes something at `path`, returns; `wanted` says how much room it asked for.

    Raises: StorageError if the system refuses.
    """
    while True:
        try:
            return call()
        except InterruptedError:
            continue
        except OSError as error:
            remedy = NO_ROOM.get(error.errno or 0, "mend what is wrong there or name another place")
            raise StorageError(
                f"{safe_text(str(path))} cannot be written ({error.strerror}{wanted}): {remedy}, then run the same "
                "command again: it continues, and what was finished is unharmed"
            ) from None
