"""A .npy file whose values are written as they come, while their number is still unknown.

The header says how many values follow it, so room is left for it and it is written last. Ids go to their file while
they are still in the processor's cache, and no shard, however large, is held in memory.
"""

from io import BufferedRandom

import numpy as np
import numpy.typing as npt

from shared.arrays import npy_header
from shared.storage import sync_and_hash


class GrowingArray:
    """Values of one dtype, end to end in the order they came, in `file`, which must be open for reading too."""

    def __init__(self, file: BufferedRandom, dtype: np.dtype) -> None:
        self._file, self._dtype = file, dtype
        self.clear()

    def __len__(self) -> int:
        return self._size

    def clear(self) -> None:
        """Forget what was added."""
        self._size = 0
        self._header_bytes = len(npy_header(self._dtype, 0))
        self._file.seek(self._header_bytes)
        self._file.truncate()

    def add(self, piece: npt.NDArray) -> None:
        """Append the values of `piece`.

        Raises: StorageError if the disk refuses.
        """
        if len(piece):
            self._file.write(piece.data.cast("B"))
            self._size += len(piece)

    def finish(self) -> str:
        """Write the header, make the file durable; return the sha256 of its contents."""
        header = npy_header(self._dtype, self._size)
        assert len(header) == self._header_bytes, "numpy pads headers to one length"
        self._file.seek(0)
        self._file.write(header)
        return sync_and_hash(self._file)
