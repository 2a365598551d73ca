"""What a run would meet on the file system of a path: whether locks, renames and clocks there are what it relies on."""

import shutil
import tempfile
import time
from pathlib import Path

from shared.directories import move
from shared.errors import StorageError, UserError
from shared.files import read_bytes
from shared.locks import exclusive
from shared.storage import write_file
from shared.terminal import safe_text
from train.finding import Finding, finding
from train.machine import GIB

OF_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
UNKNOWN = "a file system unknown"
SKEW_S = 5.0
SLOW_S = 0.5
TRIES = 5


def examine_disk(what: str, directory: Path, wanted_bytes: int) -> list[Finding]:
    """Whether `directory`, which may not be there yet, can keep a run of so many bytes."""
    there = nearest(directory)
    kind = file_system(there)
    shown = f"{safe_text(str(directory))} on {kind}"
    try:
        with tempfile.TemporaryDirectory(prefix=".argonne-doctor-", dir=there) as name:
            scratch = Path(name)
            locks, renames, sync_s, skew_s = (
                has_locks(scratch),
                has_renames(scratch),
                _sync_s(scratch),
                _skew_s(scratch),
            )
    except (OSError, StorageError) as error:
        return [finding(what, f"{shown} cannot be used ({error})", problem="name another directory")]
    faults = {
        "its locks hold nobody off: name a directory on a file system with `flock`, or have this one mounted so": locks,
        "its renames are not whole: name a directory on a POSIX file system": renames,
    }
    doubts = {
        "it is memory and goes with the machine: name a directory on a disk": kind not in OF_MEMORY,
        f"a write takes {sync_s:.1f} s to be durable: a checkpoint will be slow": sync_s < SLOW_S,
        f"its clock is {skew_s:.0f} s away from this machine's: have both set": skew_s < SKEW_S,
    }
    problem, warning = ("; ".join(text for text, is_well in table.items() if not is_well) for table in (faults, doubts))
    free = shutil.disk_usage(there).free
    is_full = free < wanted_bytes
    return [
        finding(what, f"{shown}: locks, renames, {1e3 * sync_s:.1f} ms to sync", problem=problem, warning=warning),
        finding(
            f"{what} space",
            f"{free / GIB:,.1f} GiB free, {wanted_bytes / GIB:,.1f} wanted",
            problem="make room, lower checkpoint.keep or name another directory" if is_full else "",
        ),
    ]


def nearest(path: Path) -> Path:
    """`path`, or the first directory around it that is there."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())


def file_system(directory: Path) -> str:
    """The kind of file system that `directory` is on."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return UNKNOWN
    mounts = [(Path(line.split()[4]), line.partition(" - ")[2].split()[0]) for line in lines]
    around = [(len(mount.parts), kind) for mount, kind in mounts if directory.resolve().is_relative_to(mount)]
    return max(around, key=lambda each: each[0], default=(0, UNKNOWN))[1]


def has_locks(directory: Path) -> bool:
    """Whether a lock that is held is refused to another.

    Raises: StorageError if there are none.
    """
    with exclusive(directory, "doctor"):
        try:
            with exclusive(directory, "doctor"):
                return False
        except StorageError:
            raise
        except UserError:
            return True


def has_renames(directory: Path) -> bool:
    """Whether a file takes another's place by a rename, and a directory's name changes with what is in it."""
    old, new = directory / "old", directory / "new"
    write_file(old, [b"of old"])
    write_file(new, [b"of new"])
    move(old, new)
    inside = directory / "inside"
    inside.mkdir()
    write_file(inside / "file", [b"inside"])
    move(inside, directory / "moved")
    return not old.exists() and read_bytes(new) == b"of old" and read_bytes(directory / "moved/file") == b"inside"


def _sync_s(directory: Path) -> float:
    """Seconds that a small file takes to be durable: the median of some."""
    taken = []
    for number in range(TRIES):
        began = time.perf_counter()
        write_file(directory / f"sync-{number}", [b"x"])
        taken.append(time.perf_counter() - began)
    return sorted(taken)[TRIES // 2]


def _skew_s(directory: Path) -> float:
    """Seconds between this machine's clock and that by which the file system dates a file."""
    path = directory / "clock"
    path.touch()
    return abs(path.stat().st_mtime - time.time())
