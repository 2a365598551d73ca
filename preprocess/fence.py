"""Who may write to a directory from other machines: the tasks of the build that holds it, and of no earlier one.

A build holds its directory by a lock that ends with its process; its tasks on other machines may outlive that. So there
is a second lock, the fence, with a name in it. A task holds the fence, beside other tasks, while it writes, and writes
only if the fence bears the name of its build. A build that begins waits until nobody holds the fence and takes the name
away: a task of an earlier build is waited for, or comes too late to write.
"""

import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.directories import exists
from shared.errors import UserError
from shared.files import read_bytes
from shared.locks import exclusive, together
from shared.storage import overwrite_file
from shared.terminal import safe_text

FENCE_NAME = ".lock-tasks"
WAIT_S = 60.0  # Ray Client lets the tasks of a lost build go on for 30 seconds
OUTLIVED = "build, whose tasks outlived it"


def open_fence(directory: Path) -> str:
    """The name that a task must know to write to `directory` from now on; no other task can.

    Raises: UserError if a task of an earlier build does not end.
    """
    name = secrets.token_hex(16)
    _rename(directory, name)
    return name


def close_fence(directory: Path) -> None:
    """Let no task write to `directory` from now on; those that do have ended.

    Raises: UserError if one does not end.
    """
    if exists(directory / FENCE_NAME):
        _rename(directory, "")


@contextmanager
def inside_fence(directory: Path, name: str) -> Iterator[None]:
    """Write to `directory` meanwhile, as a task of the build to which `open_fence` gave `name`.

    Raises: UserError if another build has begun since, or if this machine has another directory of that name.
    """
    _check_name(directory, name)  # first: nothing is to be made where nothing is shared
    with together(directory, OUTLIVED, FENCE_NAME):
        _check_name(directory, name)
        yield


def _rename(directory: Path, name: str) -> None:
    if not _is_free(directory):
        print("waiting for tasks on other machines to end", flush=True)
    with exclusive(directory, OUTLIVED, FENCE_NAME, WAIT_S):
        overwrite_file(directory / FENCE_NAME, name.encode())


def _is_free(directory: Path) -> bool:
    try:
        with exclusive(directory, OUTLIVED, FENCE_NAME, 1.0):
            return True
    except UserError:
        return False


def _check_name(directory: Path, name: str) -> None:
    fence = directory / FENCE_NAME
    if not exists(fence) or read_bytes(fence) != name.encode():
        raise UserError(
            f"{safe_text(str(directory))} on {platform.node()} is not the directory that the build began in: every "
            "node must share it; if they do, another build has begun there since"
        )
