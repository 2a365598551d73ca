"""Every durable write and every checksum of both programs.

A file written here is whole or absent: it is written under a temporary name, flushed to the disk, renamed, and the
directory entry is flushed too. A *sealed* JSON document carries the hash of its own contents as `fingerprint`.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from io import SEEK_END, BufferedIOBase, BufferedRandom
from pathlib import Path
from typing import Any

from shared.claims import guard
from shared.directories import sync_directory, temporary_name
from shared.errors import FormatError, StorageError
from shared.files import OpenFile, open_empty, open_file, read_bytes
from shared.system import system, writing

SEAL = "fingerprint"


class NewFile(BufferedIOBase):
    """A stream that is written from start to end, and hashed on its way."""

    def __init__(self, file: BufferedRandom) -> None:
        super().__init__()
        self._file, self._digest, self.size_bytes = file, hashlib.sha256(), 0

    @property
    def sha256(self) -> str:
        """Hex sha256 of what was written so far."""
        return self._digest.hexdigest()

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size_bytes

    def write(self, data: Any) -> int:
        """Append `data`.

        Raises: StorageError if the disk refuses.
        """
        size_bytes = self._file.write(data)
        self._digest.update(data)
        self.size_bytes += size_bytes
        return size_bytes


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Write `pieces` end to end to `path`, durable and whole or absent; return the sha256 of the contents.

    Raises: StorageError if the disk refuses.
    """
    with hashed_file(path) as file:
        for piece in pieces:
            file.write(piece)
    return file.sha256


@contextmanager
def hashed_file(path: Path) -> Iterator[NewFile]:
    """A stream that is `path` after the block, durable; absent if it failed. It knows its sha256, then too.

    Raises: StorageError if the disk refuses.
    """
    with new_file(path) as file:
        yield NewFile(file)


@contextmanager
def new_file(path: Path) -> Iterator[BufferedRandom]:
    """An empty file, to be written in any order and read, that is `path` after the block, durable; absent if it failed.

    The temporary name is of this write alone: two processes that write the same file at once both write a whole one.

    Raises: StorageError if the disk refuses; UserError if the directory was taken from this process.
    """
    temporary = temporary_name(path)
    try:
        with open_empty(temporary, path) as file:
            yield file
            _sync(file)
        _put_in_place(temporary, path)
    except BaseException:
        with suppress(OSError):  # there may be none, and what went wrong matters more
            system.unlink(temporary)  # a full disk gets its room back
        raise
    sync_directory(path.parent)


def _put_in_place(temporary: Path, path: Path) -> None:
    guard(path)
    try:
        writing(path, partial(system.rename, temporary, path))
    except StorageError:
        guard(path)  # who took the directory has deleted what was being written
        raise


def sync_and_hash(file: BufferedRandom) -> str:
    """Flush `file`, open for reading too, to the disk; hex sha256 of its contents, found while the disk works."""
    file.seek(0)  # and flush it
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(_raw(file).sync)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        synced.result()
    return digest


def _sync(file: BufferedRandom) -> None:
    file.flush()
    _raw(file).sync()


def _raw(file: BufferedRandom) -> OpenFile:
    assert isinstance(file.raw, OpenFile)
    return file.raw


def sync_file(path: Path) -> None:
    """Make what was appended to the file at `path` durable."""
    with OpenFile(path, os.O_RDWR) as file:
        file.sync()


def sha256_file(path: Path) -> str:
    """Hex sha256 of the file's contents."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_line(path: Path, line: str) -> None:
    """Add a line to the text file at `path`: whole, or not at all. A line that a kill cut short makes room for it.

    Raises: StorageError if the system refuses; UserError if the directory was taken from this process.
    """
    guard(path)
    with OpenFile(path, os.O_RDWR | os.O_CREAT) as file:
        end = _end_of_lines(file)
        rest = memoryview(line.encode() + b"\n")
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except StorageError:
            file.truncate(end)
            raise


def _end_of_lines(file: OpenFile) -> int:
    """Go to where the last whole line ends, and let nothing be behind that."""
    end = file.seek(0, SEEK_END)
    last = bytearray(1)
    file.seek(max(end - 1, 0))
    if end and file.readinto(last) and last != b"\n":
        file.seek(0)
        end = file.readall().rfind(b"\n") + 1
        file.truncate(end)
    return file.seek(end)


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
    contents = read_bytes(path)
    try:
        document = json.loads(contents)
    except ValueError as error:
        raise FormatError(
            f"{path} is not valid JSON ({error}): it is damaged or not ours; restore or rebuild it"
        ) from None
    if (
        not isinstance(document, dict)
        or not contents.endswith(b"}\n")
        or not (_is_sealed_line(contents) or document.get(SEAL) == seal(document))
    ):
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
