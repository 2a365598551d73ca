"""One-dimensional .npy files, checked before they are trusted: header, type and length."""

from contextlib import suppress
from io import SEEK_END, BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shared.errors import FormatError
from shared.files import open_file, size_of
from shared.storage import write_file

MAKE = "make tokenize"


class StoredArray(NamedTuple):
    """A 1-D .npy file as it should be, and the command that writes it."""

    path: Path
    dtype: np.dtype
    size: int
    command: str = MAKE


def open_array(path: Path, dtype: np.dtype, size: int, command: str = MAKE) -> npt.NDArray:
    """Read-only map of a 1-D .npy file whose header and length are those wanted; `command` writes such files.

    The length is checked before mapping: touching a map behind the end of a file kills the process (SIGBUS).

    Raises: FormatError naming the file, what was found and what mends it.
    """
    start = check_array(path, dtype, size, command)
    with open_file(path) as file:
        return np.memmap(file, dtype=dtype, mode="r", offset=start, shape=(size,))


def check_array(path: Path, dtype: np.dtype, size: int, command: str = MAKE) -> int:
    """Where the data begin in a 1-D .npy file whose header and length are those wanted.

    Raises: FormatError as `open_array`.
    """
    wanted = npy_header(dtype, size)
    with suppress(FileNotFoundError), open_file(path) as file:  # as we write it: no header to parse
        if file.read(len(wanted)) == wanted and file.seek(0, SEEK_END) == len(wanted) + size * dtype.itemsize:
            return len(wanted)
    mend = remedy(path, command)
    shape, found_dtype, start = _read_header(path, mend)
    if (shape, found_dtype) != ((size,), dtype):
        raise FormatError(f"{path} holds {shape} of {found_dtype}; {(size,)} of {dtype} is wanted: {mend}")
    size_bytes, wanted_bytes = size_of(path), start + size * dtype.itemsize
    if size_bytes != wanted_bytes:
        raise FormatError(f"{path} is {size_bytes:,} bytes; {wanted_bytes:,} are wanted: {mend}")
    return start


def remedy(path: Path, command: str) -> str:
    """What mends a file of a shard."""
    return f"delete {path.name.split('.')[0]}.* there and run `{command}` again: only that shard is rebuilt"


def write_array(path: Path, array: npt.NDArray) -> str:
    """Write a 1-D array as a .npy file, durable and whole or absent; return the sha256 of the file."""
    return write_file(path, [npy_header(array.dtype, len(array)), array.view(np.uint8).data])


def npy_header(dtype: np.dtype, size: int) -> bytes:
    """What stands before the data of a 1-D .npy file."""
    header = BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (size,)}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def _read_header(path: Path, mend: str) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and dtype that the header of the .npy file at `path` names, and where its data begin."""
    try:
        with open_file(path) as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(file)
            return shape, dtype, file.tell()
    except FileNotFoundError:
        raise FormatError(f"{path} is missing: {mend}") from None
    except (ValueError, SyntaxError, TokenError) as error:  # numpy parses the header as Python
        reason = str(error).partition("\n")[0]
        raise FormatError(f"{path} is not a .npy file ({reason}): {mend}") from None
