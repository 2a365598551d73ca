"""Names in directories: looked up, made, changed and deleted, each durable before the next thing is done."""

import os
import re
import secrets
import stat
from contextlib import suppress
from functools import partial
from pathlib import Path

from shared.claims import guard
from shared.system import reading, system, writing

TEMPORARY_SUFFIX = ".tmp"


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nobody else has."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def written_name(name: str) -> str | None:
    """The file that a killed write was about to make, if `name` is what it left; None for any other name.

    >>> written_name("00007.npy.0a1b2c3d.tmp"), written_name("00007.npy")
    ('00007.npy', None)
    """
    found = re.fullmatch(rf"(.+?)(\.[0-9a-f]{{8}})?{re.escape(TEMPORARY_SUFFIX)}", name)
    return found[1] if found else None


def exists(path: Path) -> bool:
    """Whether there is a file or directory of this name."""
    return _mode(path) is not None


def is_directory(path: Path) -> bool:
    """Whether there is a directory of this name."""
    return stat.S_ISDIR(_mode(path) or 0)


def last_change_s(directory: Path) -> float | None:
    """When `directory` or something right in it last changed, in seconds since 1970; None if it is no directory.

    A link is none. What another process deletes meanwhile has not changed.
    """
    status = _own_status(directory)
    if status is None or not stat.S_ISDIR(status.st_mode):
        return None
    inside = (found.st_mtime for found in map(_own_status, listing(directory)) if found)
    return max((status.st_mtime, *inside))


def listing(directory: Path) -> list[Path]:
    """What is in `directory`, in the order of names; nothing if it is not there."""
    try:
        names = reading(directory, partial(system.listing, directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [directory / name for name in names]


def sync_directory(directory: Path) -> None:
    """Make renames and new names in `directory` durable."""
    descriptor = reading(directory, partial(system.open, directory, os.O_RDONLY))
    try:
        writing(directory, partial(system.fsync, descriptor))
    finally:
        system.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make `directory` and those it is in, as far as they are not there, durable.

    Raises: StorageError if the system refuses.
    """
    if is_directory(directory):
        return
    make_directory(directory.parent)
    writing(directory, partial(_make, directory))
    sync_directory(directory.parent)


def remove_file(path: Path) -> None:
    """Delete a file, if it is there, and make that durable."""
    if exists(path):
        guard(path)
        writing(path, partial(_unlink, path))
        sync_directory(path.parent)


def move(old: Path, new: Path) -> None:
    """Give a file or directory another name in the same directory, in place of what had it, durable."""
    guard(new)
    writing(new, partial(system.rename, old, new))
    sync_directory(new.parent)


def remove_tree(directory: Path) -> None:
    """Delete `directory` and what is in it, durable. It is gone at once: a crash leaves the rest under another name."""
    guard(directory)
    doomed = directory if written_name(directory.name) else temporary_name(directory)
    if doomed != directory:
        move(directory, doomed)
    _remove_all(doomed)
    sync_directory(directory.parent)


def _remove_all(directory: Path) -> None:
    for path in listing(directory):
        if stat.S_ISDIR(reading(path, partial(system.lstat, path)).st_mode):
            _remove_all(path)
        else:
            writing(path, partial(_unlink, path))
    writing(directory, partial(system.rmdir, directory))


def _mode(path: Path) -> int | None:
    """What kind of file `path` is, if it is there."""
    try:
        return reading(path, partial(system.stat, path)).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _own_status(path: Path) -> os.stat_result | None:
    """What is known of `path` itself, link or not, if it is there."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return reading(path, partial(system.lstat, path))
    return None


def _make(directory: Path) -> None:
    with suppress(FileExistsError):  # another process made it meanwhile
        system.mkdir(directory)


def _unlink(path: Path) -> None:
    with suppress(FileNotFoundError):  # another process deleted it meanwhile
        system.unlink(path)
