"""Who may change a directory: the process that its lock file names, what that has started, and nobody from before.

A lock ends with its process, so one that is stopped, or cut off with its machine, may go on later than the process that
has the directory by then; and what a killed process started elsewhere may outlive it. So everything that is put in
place, deleted or appended in a claimed directory is preceded by a look at the lock file (`guard`). The one moment
between that look and the change is closed from the other side: who claims a directory deletes what was being written
there under temporary names, and what was checked but is not yet in its place is such a file.
"""

import json
import os
import platform
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shared.errors import UserError
from shared.files import read_bytes
from shared.terminal import safe_text

JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID")


def _job() -> str:
    return next((os.environ[name] for name in JOB_VARIABLES if os.environ.get(name)), "")


@dataclass(frozen=True)
class Owner:
    """A process that holds a directory, since when, and a word that no other claim has."""

    host: str = field(default_factory=platform.node)
    process: int = field(default_factory=os.getpid)
    job: str = field(default_factory=_job)
    since_s: float = field(default_factory=time.time)
    word: str = field(default_factory=lambda: secrets.token_hex(16))

    def to_bytes(self) -> bytes:
        """What a lock file holds."""
        return json.dumps(asdict(self)).encode() + b"\n"

    def __str__(self) -> str:
        job = f" of job {self.job}" if self.job else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_s))
        return safe_text(f"process {self.process}{job} on {self.host}, since {since}")


def owner_in(contents: bytes) -> Owner | None:
    """The owner that a lock file names; None if it names none."""
    with suppress(ValueError, TypeError):
        return Owner(**json.loads(contents))
    return None


@dataclass(frozen=True)
class Claim:
    """What the lock file at `lock` held when this process, or the one that started it, took its directory."""

    lock: Path
    contents: bytes

    @property
    def holds(self) -> bool:
        """Whether it still does."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return read_bytes(self.lock) == self.contents
        return False

    def check(self) -> None:
        """Raises: UserError if another process has the directory by now."""
        if self.holds:
            return
        owner: Owner | None = None
        with suppress(FileNotFoundError, NotADirectoryError):
            owner = owner_in(read_bytes(self.lock))
        by = f" by {owner}" if owner else ""
        raise UserError(
            f"{safe_text(str(self.lock.parent))} was taken over{by}: this process writes nothing there any more; what "
            "it had finished is kept"
        )


_held: list[Claim] = []


def held() -> tuple[Claim, ...]:
    """The claims of this process, for one that it starts."""
    return tuple(_held)


@contextmanager
def claimed(claim: Claim) -> Iterator[None]:
    """Look at `claim` meanwhile before anything in its directory changes."""
    _held.append(claim)
    try:
        yield
    finally:
        _held.remove(claim)


def adopt(claims: Iterable[Claim]) -> None:
    """Have the claims of the process that started this one, and no others."""
    _held[:] = claims


def guard(path: Path) -> None:
    """Nothing, if this process may change `path`.

    Raises: UserError if it is in a directory that was taken from it.
    """
    for claim in held():
        if path.absolute().is_relative_to(claim.lock.parent):
            claim.check()
