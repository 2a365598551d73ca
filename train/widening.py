"""Stored ids as int64 on the device that trains, in memory that is used again once nothing refers to it."""

import sys

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BUFFERS = 4


class Widening:
    """Makes int64 of stored ids. Fresh memory would cost more than the copy: the system fills it with zeros first.

    A GPU's memory, and pinned memory, torch itself uses again; it knows when copies from it have ended.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: list[npt.NDArray[np.int64]] = []

    def __call__(self, ids: Tensor) -> Tensor:
        """The ids on the device; no tensor that was given out before and is still referred to changes."""
        if self._device.type != "cpu":
            return ids.to(self._device, non_blocking=True).to(torch.int64)
        return torch.from_numpy(self._unused(tuple(ids.shape))).copy_(ids)

    def _unused(self, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """A buffer that no tensor shares: such a tensor, or what holds its memory, refers to the array."""
        for buffer in self._buffers:
            if buffer.shape == shape and sys.getrefcount(buffer) == REFERENCES:
                return buffer
        self._buffers = [np.empty(shape, np.int64), *self._buffers][:BUFFERS]
        return self._buffers[0]


REFERENCES = 3
