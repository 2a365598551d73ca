"""Who holds a directory: a lock that ends with its process, however it ends, in a file that says who has it.

On a file system that several machines share, a lock may outlast a machine that is gone, and a process that is stopped
keeps its own. Such a directory can be stolen: the lock file is replaced by another. The earlier owner, should it go on,
finds there what it has not written, and changes nothing more (claims.py).
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from shared.claims import Claim, Owner, claimed, owner_in
from shared.directories import listing, move, temporary_name
from shared.errors import StorageError, UserError
from shared.files import read_bytes
from shared.system import reading, system, writing
from shared.terminal import safe_text

LOCK_NAME = ".lock"
THEFT_NAME = ".lock-theft"  # held for a moment, so that thieves come one after the other
TOGETHER = b"several\n"  # have the lock at once: who they are is not in this file
PATIENCE_S = 2.0  # for an owner to write its name, or a thief to end
POLL_S, SETTLE_S = 0.02, 0.1
BEGAN_S = time.time()  # of this process: nobody who came later is robbed, or of several thieves each would rob the last


@contextmanager
def exclusive(directory: Path, what: str, name: str = LOCK_NAME, steal: bool = False) -> Iterator[None]:
    """Hold `directory`, or the part of it that `name` stands for, alone; with `steal`, by taking it from its owner.

    Who holds it deletes first what was being written there under temporary names: claims.py says why.

    Raises: UserError that names the owner, if there is one and it is not to be stolen.
    """
    with _held(directory / name, what, fcntl.LOCK_EX, steal) as lock:
        try:
            yield
        finally:
            lock.write(b"")  # nobody's; a name that a killed process leaves is replaced by the next owner's


@contextmanager
def together(directory: Path, what: str, name: str = LOCK_NAME, steal: bool = False) -> Iterator[None]:
    """Hold `directory`, or the part of it that `name` stands for, beside others that hold it so: nobody can alone.

    Raises: UserError that names the owner, if somebody holds it alone and it is not to be stolen.
    """
    with _held(directory / name, what, fcntl.LOCK_SH, steal):
        yield


class _LockFile:
    """The file at `path`, open. What is written to it stays in it if another takes its place at that path."""

    def __init__(self, path: Path) -> None:
        self.path, self.claim = path, Claim(path, b"")
        self._descriptor = writing(path, partial(system.open, path, os.O_RDWR | os.O_CREAT))

    def acquire(self, how: int) -> bool:
        """Whether nobody else had the lock.

        Raises: StorageError if the file system has none.
        """
        try:
            reading(self.path, partial(system.lock, self._descriptor, how | fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            raise StorageError(
                f"{safe_text(str(self.path))} cannot be locked ({error.strerror}): name a directory on a file system "
                "with `flock`, or have this one mounted with it"
            ) from None
        return True

    def sign(self, how: int, path: Path) -> None:
        """Write who has the lock, for a file that is or will be at `path`."""
        self.claim = Claim(path.absolute(), Owner().to_bytes() if how == fcntl.LOCK_EX else TOGETHER)
        self.write(self.claim.contents)

    def write(self, contents: bytes) -> None:
        """Let the file hold `contents`. If it does already, nobody sees it hold anything else meanwhile."""
        if contents:
            writing(self.path, partial(system.write, self._descriptor, memoryview(contents), 0))
        writing(self.path, partial(system.truncate, self._descriptor, len(contents)))
        writing(self.path, partial(system.fsync, self._descriptor))  # other machines see it

    def close(self) -> None:
        """Give the lock back."""
        system.close(self._descriptor)


@contextmanager
def _held(path: Path, what: str, how: int, steal: bool) -> Iterator[_LockFile]:
    lock = _lock(path, how)
    if lock is None and steal:
        lock = _steal(path, how)
    if lock is None:
        raise UserError(_in_use(path, what))
    try:
        with claimed(lock.claim):
            yield lock
    finally:
        lock.close()


def _lock(path: Path, how: int) -> _LockFile | None:
    """The file at `path`, locked and signed; None if another process has the lock."""
    while True:
        lock = _LockFile(path)
        if not lock.acquire(how):
            lock.close()
            return None
        lock.sign(how, path)
        if lock.claim.holds:
            return lock
        lock.close()  # another file has taken its place since it was opened


def _steal(path: Path, how: int) -> _LockFile | None:
    """A locked and signed file in the place of the one at `path`; None if another thief came first."""
    seen, end_s = read_bytes(path), time.monotonic() + PATIENCE_S
    if (owner := owner_in(seen)) is not None and owner.since_s > BEGAN_S:
        return None
    while (theft := _lock(path.with_name(THEFT_NAME), fcntl.LOCK_EX)) is None:
        if time.monotonic() >= end_s:
            return None
        time.sleep(POLL_S)
    try:
        if (lock := _lock(path, how)) is not None or read_bytes(path) != seen:
            return lock
        lock = _LockFile(temporary_name(path))
        lock.acquire(how)
        lock.sign(how, path)
        move(lock.path, path)
        return lock
    finally:
        theft.write(b"")
        theft.close()


def _in_use(path: Path, what: str) -> str:
    """Who has the lock at `path`, and what to do."""
    time.sleep(SETTLE_S)  # who has just got the lock may not have signed yet
    end_s = time.monotonic() + PATIENCE_S
    while not (contents := read_bytes(path)) and time.monotonic() < end_s:
        time.sleep(POLL_S)
    parts = [other for other in listing(path.parent) if other.name.startswith(f"{path.name}-")]
    files = [path] if contents != TOGETHER else parts
    owners = "; ".join(str(owner) for file in files if (owner := owner_in(read_bytes(file))))
    return (
        f"{safe_text(str(path.parent))} is in use by another {what}{f' ({owners})' if owners else ''}: wait for it to "
        "end or name another directory; if it is gone for good, --steal takes this one over"
    )
