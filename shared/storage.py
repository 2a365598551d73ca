"""Every durable write and every checksum of both programs.

A file written here is whole or absent: it is written under a temporary name, flushed to the disk, renamed, and the
directory entry is flushed too. A *sealed* JSON document carries the hash of its own contents as `fingerprint`.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from shared.errors import FormatError, UserError

SEAL = "fingerprint"
TEMPORARY_SUFFIX = ".tmp"
LOCK_NAME = ".lock"


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Write `pieces` end to end to `path`, durable and whole or absent; return the sha256 of the contents."""
    digest = hashlib.sha256()
    with new_file(path) as file:
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


@contextmanager
def new_file(path: Path) -> Iterator[BufferedRandom]:
    """An empty file, to be written in any order and read, that is `path` after the block, durable; absent if it failed.

    The temporary name is of this write alone: two processes that write the same file at once both write a whole one.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk gets its room back
        raise
    sync_directory(path.parent)


def sync_and_hash(file: BufferedRandom) -> str:
    """Flush `file`, open for reading too, to the disk; hex sha256 of its contents, found while the disk works."""
    file.flush()
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(os.fsync, file.fileno())
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        synced.result()
    return digest


def written_name(name: str) -> str | None:
    """The file that a killed write was about to make, if `name` is what it left; None for any other name.

    >>> written_name("00007.npy.0a1b2c3d.tmp"), written_name("00007.npy")
    ('00007.npy', None)
    """
    found = re.fullmatch(rf"(.+?)(\.[0-9a-f]{{8}})?{re.escape(TEMPORARY_SUFFIX)}", name)
    return found[1] if found else None


def sync_directory(directory: Path) -> None:
    """Make renames and new names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hex sha256 of the file's contents."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(document: dict[str, Any]) -> str:
    """Hex sha256 of `document` without its seal, as JSON with sorted keys and no spaces.

    >>> seal({"b": 1, "a": 2}) == seal({"a": 2, "b": 1, "fingerprint": "ignored"})
    True
    """
    return hashlib.sha256(_canonical(document)).hexdigest()


def write_sealed(path: Path, document: dict[str, Any]) -> str:
    """Write `document` with its seal, durable and whole or absent; return the seal."""
    fingerprint = seal(document)
    text = json.dumps({**document, SEAL: fingerprint}, indent=1)
    write_file(path, [text.encode() + b"\n"])
    return fingerprint


def write_large_sealed(path: Path, document: dict[str, Any]) -> str:
    """As `write_sealed`, as one line that is checked without taking it apart: the bytes before the seal are sealed.

    Not for an empty document.
    """
    body = _canonical(document)
    fingerprint = hashlib.sha256(body).hexdigest()
    write_file(path, [body[:-1], _last_words(fingerprint)])
    return fingerprint


def read_sealed(path: Path) -> dict[str, Any]:
    """The document at `path`, seal included.

    Raises: FormatError if it is not JSON or its contents do not match its seal; FileNotFoundError if it is absent.
    """
    contents = path.read_bytes()
    try:
        document = json.loads(contents)
    except ValueError as error:
        raise FormatError(
            f"{path} is not valid JSON ({error}): it is damaged or not ours; restore or rebuild it"
        ) from None
    if not isinstance(document, dict) or not (_is_sealed_line(contents) or document.get(SEAL) == seal(document)):
        raise FormatError(f"{path} does not match its own checksum: it was damaged or edited; restore or rebuild it")
    return document


def _canonical(document: dict[str, Any]) -> bytes:
    """What a seal is the hash of."""
    rest = {key: value for key, value in document.items() if key != SEAL}
    return json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()


def _last_words(fingerprint: str) -> bytes:
    return f',"{SEAL}":"{fingerprint}"}}\n'.encode()


def _is_sealed_line(contents: bytes) -> bool:
    """Whether these are the bytes that `write_large_sealed` writes."""
    size = len(contents) - len(_last_words("0" * 64))
    digest = hashlib.sha256(memoryview(contents)[: max(size, 0)])
    digest.update(b"}")
    return contents[max(size, 0) :] == _last_words(digest.hexdigest())


@contextmanager
def exclusive(directory: Path, what: str, name: str = LOCK_NAME, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold `directory`, or the part of it that `name` stands for, alone; the lock ends with the process, however.

    Raises: UserError if another process still holds it after `timeout_s`.
    """
    lock = FileLock(directory / name, timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{directory} is in use by another {what}: wait for it to end or name another directory"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def together(directory: Path, what: str, name: str = LOCK_NAME) -> Iterator[None]:
    """Hold `directory`, or the part of it that `name` stands for, beside others that hold it so: nobody can alone.

    Raises: UserError at once if another process holds it alone.
    """
    import fcntl  # POSIX only, as are the file systems that several machines share

    with open(directory / name, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{directory} is in use by another {what}: wait for it to end or name another directory"
            ) from None
        yield


def remove_tree(directory: Path) -> None:
    """Delete `directory` and what is in it, and make that durable."""
    shutil.rmtree(directory)
    sync_directory(directory.parent)
