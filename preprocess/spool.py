"""Ids kept until their number is known: in memory, and what is more than that in a file without a name.

The header of a .npy file says how much follows it, so the ids of a shard wait until its last text is encoded. A shard
of the usual size waits in memory; a row group of many gigabytes must not.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

KEPT_BYTES = 256 << 20  # the ids of 256 MiB of text in most scripts
BLOCK_BYTES = 16 << 20


class Spool:
    """Arrays of one dtype, end to end in the order they came; beyond `kept_bytes` they are in a file in `directory`.

    The file has no name, so nothing is left of it when the process ends, however it ends.
    """

    def __init__(self, directory: Path, dtype: np.dtype, kept_bytes: int = KEPT_BYTES) -> None:
        self._directory, self._dtype, self._room = directory, dtype, kept_bytes
        self._pieces: list[npt.NDArray] = []
        self._file: IO[bytes] | None = None
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, piece: npt.NDArray) -> None:
        """Append `piece`, which must not be changed afterwards.

        Raises: OSError if the disk refuses.
        """
        self._size += len(piece)
        self._room -= piece.nbytes
        if self._room >= 0:
            self._pieces.append(piece)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 (it lives as long as this)
        self._file.write(piece.data.cast("B"))

    def __iter__(self) -> Iterator[npt.NDArray]:
        """The arrays again, not cut as they came."""
        yield from self._pieces
        if self._file is not None:
            self._file.seek(0)
            while block := self._file.read(BLOCK_BYTES):
                yield np.frombuffer(block, self._dtype)
