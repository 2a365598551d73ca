"""Memory for batches that is used again once nothing refers to it.

Fresh memory would cost more than what is written to it: the system fills it with zeros first.
"""

import sys

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MOST = 4
REFERENCES = 3  # of sys.getrefcount, where only the list of buffers and a loop's variable refer to one


class Buffers:
    """Arrays that may be written to."""

    def __init__(self) -> None:
        self._arrays: list[npt.NDArray] = []

    def unused(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray:
        """An array that nothing refers to: a tensor that shares its memory, or what holds that, refers to it."""
        for array in self._arrays:
            if sys.getrefcount(array) == REFERENCES and array.shape == shape and array.dtype == dtype:
                return array
        self._arrays = [np.empty(shape, dtype), *self._arrays][:MOST]
        return self._arrays[0]


class Widening:
    """Makes int64 of stored ids on a device. A GPU's memory torch itself uses again, and so pinned memory."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._buffers = device, Buffers()

    def __call__(self, ids: Tensor) -> Tensor:
        """The ids on the device; no tensor that was given out before and is still referred to changes."""
        if self._device.type != "cpu":
            return ids.to(self._device, non_blocking=True).to(torch.int64)
        return torch.from_numpy(self._buffers.unused(tuple(ids.shape), np.int64)).copy_(ids)
