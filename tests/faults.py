"""An operating system that fails at its k-th call, as a disk, a network, a kill or a cut of power does.

Calls are counted in two classes: `changes` alter what is stored, `looks` only ask. A fault is given as text,
KIND:CLASS:K or KIND:CLASS:K:TIMES, to a process (`install`), or in ARGONNE_FAULT to processes that are started with
`injected` on their PYTHONPATH; ARGONNE_FAULT_RANK says which rank has it.
"""

import errno
import os
import shutil
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shared.system import System, system

CHANGES = ("write", "truncate", "fsync", "rename", "unlink", "mkdir", "rmdir")
LOOKS = ("read", "size", "lock", "stat", "lstat", "listing")
CRASHED = 77  # exit code of a process that a fault has ended
DELAY_S = 0.5
VARIABLE, RANK_VARIABLE, ASIDE_VARIABLE = "ARGONNE_FAULT", "ARGONNE_FAULT_RANK", "ARGONNE_ASIDE"


@dataclass(frozen=True)
class Fault:
    """What happens at calls number `at` to `at + times - 1` of a class.

    exit   the process ends at once; what was written stays (a kill)
    half   a write does half of its work first (a kill in the middle)
    power  it ends, and all that was not fsynced is gone: contents, names, deletions
    names  it ends, and contents that were not fsynced are gone, while all names stay (a journal without its data)
    delay  the call takes half a second
    ENOSPC, EIO, ESTALE, ...   the call fails with that errno
    """

    kind: str
    of: str
    at: int
    times: int = 1

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """The fault that `str` made into text."""
        kind, of, *numbers = text.split(":")
        return cls(kind, of, *map(int, numbers))

    def __str__(self) -> str:
        return f"{self.kind}:{self.of}:{self.at}:{self.times}"


class FaultySystem:
    """The calls of `System`, counted, with one fault. It is in force from `install` on, for this process's life."""

    def __init__(self, fault: Fault | None = None, aside: Path | None = None) -> None:
        """`aside` is an empty directory on the same disk, in which a cut of power keeps what it will put back."""
        self.fault, self.counts, self.has_struck = fault, Counter[str](), False
        self.log: list[str] = []
        self._real, self._lock = System(), threading.RLock()
        self._losses = Losses(aside) if fault and aside and fault.kind in ("power", "names") else None

    def install(self) -> "FaultySystem":
        for name in ("open", "close", *CHANGES, *LOOKS):
            setattr(system, name, partial(self._call, name))
        return self

    def _call(self, name: str, *args: Any) -> Any:
        real = partial(getattr(self._real, name), *args)
        if name == "close":
            return real()
        of = "changes" if name in CHANGES or (name == "open" and args[1] & os.O_CREAT) else "looks"
        with self._lock:
            self.counts[of] += 1
            self.log.append(f"{of} {self.counts[of]}: {name} {args[0]}")
            fault = self.fault
            if fault and fault.of == of and fault.at <= self.counts[of] < fault.at + fault.times:
                self.has_struck = True
                self._strike(fault.kind, name, args)
            if self._losses is None:
                return real() if of == "changes" else self._unlocked(real)
            return self._losses.record(name, args, real)

    def _unlocked(self, real: Callable[[], Any]) -> Any:
        """Looks may wait for each other."""
        self._lock.release()
        try:
            return real()
        finally:
            self._lock.acquire()

    def _strike(self, kind: str, name: str, args: tuple) -> None:
        if kind == "delay":
            time.sleep(DELAY_S)
        elif kind in ("exit", "half", "power", "names"):
            if kind == "half" and name == "write":
                descriptor, data, place = args
                os.pwrite(descriptor, data[: len(data) // 2], place)
            if self._losses is not None:
                self._losses.lose(contents_only=kind == "names")
            os._exit(CRASHED)
        else:
            raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)))


class Losses:
    """What a cut of power takes: how to undo every change that was not made durable since."""

    def __init__(self, aside: Path) -> None:
        self._undo: list[tuple[str, Any, Callable[[], Any]]] = []  # "contents" of a file or "names" in a directory
        self._aside = aside

    def record(self, name: str, args: tuple, real: Callable[[], Any]) -> Any:
        """Make the call, and know how to undo it."""
        with suppress(FileNotFoundError, NotADirectoryError):
            getattr(self, f"_{name}", lambda *_: None)(*args)
        return real()

    def lose(self, contents_only: bool) -> None:
        for what, _, undo in reversed(self._undo):
            if what == "contents" or not contents_only:
                with suppress(FileNotFoundError):  # it was in a directory that is lost itself
                    undo()

    def _open(self, path: Path, flags: int) -> None:
        if not flags & os.O_CREAT:
            return
        if not path.exists():
            self._names(path.parent, partial(path.unlink, missing_ok=True))
        elif flags & os.O_TRUNC:
            self._contents(os.open(path, os.O_RDWR))

    def _write(self, descriptor: int, *_: Any) -> None:
        self._contents(os.dup(descriptor))

    def _truncate(self, descriptor: int, *_: Any) -> None:
        self._contents(os.dup(descriptor))

    def _fsync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        kept = ("names" if stat.S_ISDIR(status.st_mode) else "contents", _identity(status))
        self._undo = [entry for entry in self._undo if entry[:2] != kept]

    def _rename(self, old: Path, new: Path) -> None:
        aside = self._keep(new)
        self._names(new.parent, partial(_undo_rename, old, new, aside))

    def _unlink(self, path: Path) -> None:
        aside = self._keep(path)
        if aside:
            self._names(path.parent, partial(aside.rename, path))

    def _mkdir(self, directory: Path) -> None:
        if not directory.exists():
            self._names(directory.parent, partial(shutil.rmtree, directory))

    def _rmdir(self, directory: Path) -> None:
        self._names(directory.parent, partial(directory.mkdir, exist_ok=True))

    def _names(self, directory: Path, undo: Callable[[], Any]) -> None:
        self._undo.append(("names", _identity(directory.stat()), undo))

    def _contents(self, descriptor: int) -> None:
        """Keep what the file holds now, unless it is kept already."""
        status = os.fstat(descriptor)
        key = _identity(status)
        if any(entry[:2] == ("contents", key) for entry in self._undo):
            os.close(descriptor)
            return
        held = os.pread(descriptor, status.st_size, 0)
        self._undo.append(("contents", key, partial(_put_back, descriptor, held)))

    def _keep(self, path: Path) -> Path | None:
        """Another name for a file whose name is about to go."""
        if not path.is_file():
            return None
        aside = self._aside / str(len(list(self._aside.iterdir())))
        os.link(path, aside)
        return aside


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _put_back(descriptor: int, held: bytes) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, held, 0)


def _undo_rename(old: Path, new: Path, aside: Path | None) -> None:
    new.rename(old)
    if aside:
        aside.rename(new)


def install_from_environment() -> None:
    """The fault that ARGONNE_FAULT names, if this process is the rank that has it."""
    text, rank = os.environ.get(VARIABLE), os.environ.get(RANK_VARIABLE)
    if text and (rank is None or rank == os.environ.get("RANK")):
        aside = os.environ.get(ASIDE_VARIABLE)
        FaultySystem(Fault.parse(text), Path(aside) if aside else None).install()
