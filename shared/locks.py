"""Who holds a directory: locks that end with their process, however it ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from shared.errors import StorageError, UserError
from shared.system import reading, system, writing
from shared.terminal import safe_text

LOCK_NAME = ".lock"
POLL_S = 0.05


@contextmanager
def exclusive(directory: Path, what: str, name: str = LOCK_NAME, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold `directory`, or the part of it that `name` stands for, alone; the lock ends with the process, however.

    Raises: UserError if another process still holds it after `timeout_s`.
    """
    with _locked(directory, what, name, fcntl.LOCK_EX, timeout_s):
        yield


@contextmanager
def together(directory: Path, what: str, name: str = LOCK_NAME) -> Iterator[None]:
    """Hold `directory`, or the part of it that `name` stands for, beside others that hold it so: nobody can alone.

    Raises: UserError at once if another process holds it alone.
    """
    with _locked(directory, what, name, fcntl.LOCK_SH, 0.0):
        yield


@contextmanager
def _locked(directory: Path, what: str, name: str, how: int, timeout_s: float) -> Iterator[None]:
    path, end_s = directory / name, time.monotonic() + timeout_s
    descriptor = writing(path, partial(system.open, path, os.O_RDWR | os.O_CREAT))
    try:
        while not _try_lock(path, descriptor, how):
            if time.monotonic() >= end_s:
                raise UserError(
                    f"{directory} is in use by another {what}: wait for it to end or name another directory"
                )
            time.sleep(POLL_S)
        yield
    finally:
        system.close(descriptor)


def _try_lock(path: Path, descriptor: int, how: int) -> bool:
    """Whether nobody else had the lock.

    Raises: StorageError if the file system has none.
    """
    try:
        reading(path, partial(system.lock, descriptor, how | fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise StorageError(
            f"{safe_text(str(path))} cannot be locked ({error.strerror}): name a directory on a file system with "
            "`flock`, or have this one mounted with it"
        ) from None
    return True
