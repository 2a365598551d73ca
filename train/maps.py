"""The arrays of all shards as one: a gather over any number of shards is a gather of one array.

The address space for all of them is reserved at once, which costs no memory, and a shard's file is mapped into its
place when it is first asked for. No file stays open.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared.arrays import StoredArray, check_array, npy_header, remedy
from shared.errors import FormatError, UserError
from shared.files import open_file
from shared.format import TOKEN_DTYPES, Index, chunks_of, stored_tokens

MAX_MAPPED = 16_384  # shards of each of up to three kinds; Linux allows a process 65,530 maps
CHECKERS = 16  # threads
MAP_FIXED = 0x10  # of Linux and macOS; Python's mmap does not name it
SIGNED: dict[int, np.dtype] = {
    2: np.dtype(np.int16),
    4: np.dtype(np.int32),
}  # ids by their size, of the types that all of torch knows
Positions = npt.NDArray[np.int64]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
]
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class ShardMaps:
    """Read-only arrays of one dtype, one of each shard, side by side in memory. Places in it are bytes from its start.

    Not for several threads at once.
    """

    def __init__(
        self,
        stored: Callable[[int], StoredArray],
        sizes: npt.NDArray[np.int64],
        dtype: np.dtype,
        advice: int = mmap.MADV_NORMAL,
        room: int = 0,
    ) -> None:
        """`sizes` are the elements of each shard; so many as `room` may be read behind the end of any."""
        self._stored, self.dtype, self._advice = stored, dtype, advice
        self._header = len(npy_header(dtype, 0))  # numpy pads it: the same for any number of elements
        pages = -(-(self._header + sizes * dtype.itemsize) // mmap.PAGESIZE)
        self._slots = np.concatenate([[0], np.cumsum(pages * mmap.PAGESIZE)])
        self._data = np.full(len(sizes), -1, np.int64)
        self._num_mapped = 0
        self.size_bytes = int(self._slots[-1]) + mmap.PAGESIZE + room * dtype.itemsize
        self._address = _map(None, self.size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
        weakref.finalize(self, _libc.munmap, self._address, self.size_bytes).atexit = False
        self._whole = (ctypes.c_ubyte * self.size_bytes).from_address(self._address)
        self.bytes = memoryview(self._whole).cast("B").toreadonly()
        count = self.size_bytes - dtype.itemsize + 1
        self._at_byte: npt.NDArray = np.ndarray((count,), dtype, self.bytes, strides=(1,))

    def windows(self, length: int) -> "Windows":
        """Every run of `length` elements that begins at a multiple of their size, for as long as the maps are there."""
        signed = SIGNED[self.dtype.itemsize]
        flat = torch.from_numpy(np.frombuffer(self._whole, signed, self.size_bytes // signed.itemsize))  # type: ignore[call-overload]
        return Windows(flat.as_strided((len(flat) - length + 1, length), (1, 1)), signed)

    def at(self, places: Positions) -> npt.NDArray:
        """The element at each place."""
        elements: npt.NDArray = self._at_byte[places]
        return elements

    def starts(self, shards: Positions) -> Positions:
        """Where the array of each shard begins; all of them are mapped until the next call.

        Raises: FormatError if a file is not exactly what it should be.
        """
        starts = self._data[shards]
        if (starts < 0).any():
            new = np.unique(shards[starts < 0])
            if self._num_mapped and self._num_mapped + len(new) > MAX_MAPPED:
                self._forget()
                new = np.unique(shards)
            for shard in new.tolist():
                self._data[shard] = self._slots[shard] + self._open(shard)
            self._num_mapped += len(new)
            starts = self._data[shards]
        return starts

    def read(self, shards: Positions, offsets: Positions) -> npt.NDArray:
        """The element at each offset of a shard's array.

        Raises: FormatError as `starts`.
        """
        return self.at(self.starts(shards) + offsets * self.dtype.itemsize)

    def will_need(self, starts: Positions, sizes: Positions) -> None:
        """Have the system read so many elements from each start on, without waiting for it."""
        first = starts // mmap.PAGESIZE * mmap.PAGESIZE
        size_bytes = starts + sizes * self.dtype.itemsize - first
        for place, size in zip((first + self._address).tolist(), size_bytes.tolist(), strict=True):
            _libc.madvise(place, size, mmap.MADV_WILLNEED)

    def _open(self, shard: int) -> int:
        """Map a shard's file into its slot; where its data begin there."""
        stored = self._stored(shard)
        if (header := check_array(*stored)) != self._header:
            raise FormatError(
                f"{stored.path} has a header of {header} bytes; {self._header} are wanted: "
                f"{remedy(stored.path, stored.command)}"
            )
        size_bytes, slot = header + stored.size * self.dtype.itemsize, int(self._slots[shard])
        with open_file(stored.path) as file:
            place = _map(self._address + slot, size_bytes, mmap.MAP_SHARED | MAP_FIXED, file.fileno())
        _libc.madvise(place, size_bytes, self._advice)
        return header

    def _forget(self) -> None:
        """Unmap every shard; their places stay reserved."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
        _map(self._address, self.size_bytes, flags, -1)
        self._data[:] = -1
        self._num_mapped = 0


class Windows(NamedTuple):
    """Runs of as many elements, which overlap: number i begins at element i."""

    runs: Tensor
    signed: np.dtype
    """Of the elements, as torch knows them."""

    def gather(self, starts: Positions, out: npt.NDArray) -> None:
        """Fill each row of `out` with the run from one of the `starts` on.

        By torch, because numpy takes rows that overlap by a slower way, and not into memory that there is.
        """
        into = torch.from_numpy(out.view(self.signed))
        torch.index_select(self.runs, 0, torch.from_numpy(starts // self.signed.itemsize), out=into)


def map_tokens(tokens: Path, index: Index, is_shuffled: bool, room: int = 0) -> ShardMaps:
    """The ids of all shards of the dataset in `tokens`."""
    sizes = chunks_of(np.array(index.shard_tokens(), np.int64), index.chunk_length) * index.chunk_length + 1
    advice = mmap.MADV_RANDOM if is_shuffled else mmap.MADV_SEQUENTIAL
    return ShardMaps(partial(stored_tokens, tokens, index), sizes, TOKEN_DTYPES[index.dtype], advice, room)


def check_stored(kinds: Iterable[Callable[[int], StoredArray]], num_shards: int) -> None:
    """Look at the header and the length of every file of these kinds; many at once, for file systems far away.

    Raises: FormatError of the first that is not exactly what it should be.
    """
    with ThreadPoolExecutor(CHECKERS) as checkers:
        for stored in kinds:
            for _ in checkers.map(lambda shard, stored=stored: check_array(*stored(shard)), range(num_shards)):
                pass


def _map(address: int | None, size_bytes: int, flags: int, descriptor: int) -> int:
    """Where the file, or nothing but zeros, was mapped.

    Raises: UserError if the process may not have that much of the address space, or no more maps.
    """
    place = _libc.mmap(address, size_bytes, mmap.PROT_READ, flags, descriptor, 0)
    if place == ctypes.c_void_p(-1).value:
        reason = os.strerror(ctypes.get_errno())
        raise UserError(
            f"{size_bytes:,} bytes of the dataset cannot be mapped ({reason}): lift `ulimit -v`, or raise the system's "
            "vm.max_map_count"
        )
    return int(place)
