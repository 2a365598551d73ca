"""A set of code points, and which texts of an Arrow array hold one of them, at gigabytes a second."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_COMPARED = 6
BLOCK_BYTES = 1 << 17
Integers = npt.NDArray[np.int64]


class CodePoints:
    """A set of code points above ASCII, kept as ranges."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self.ranges = [(int(first), int(last)) for first, last in ranges]
        self._firsts = np.array([first for first, _ in self.ranges], np.int64)
        self._lasts = np.array([last for _, last in self.ranges], np.int64)
        self._leads = np.zeros(1 << 16, np.bool_)  # by the first two bytes of a code point's UTF-8
        for first, last in self.ranges:
            self._leads[_lead(first) : _lead(last) + 1] = True
        self._first_bytes = np.unique(np.flatnonzero(self._leads) >> 8).astype(np.uint8)

    @classmethod
    def of(cls, codepoints: Iterable[int]) -> "CodePoints":
        """The set of these code points.

        >>> CodePoints.of([0x100, 0x102, 0x101, 0x200]).ranges
        [(256, 258), (512, 512)]
        """
        ordered = np.unique(np.fromiter(codepoints, np.int64))
        breaks = np.flatnonzero(np.diff(ordered) > 1)
        firsts, lasts = np.append(ordered[:1], ordered[breaks + 1]), np.append(ordered[breaks], ordered[-1:])
        return cls(list(zip(firsts.tolist(), lasts.tolist(), strict=True)))

    def __len__(self) -> int:
        return int((self._lasts - self._firsts + 1).sum())

    def texts_with(self, texts: Any) -> Integers:
        """Numbers of the texts, of a large_string array, that hold one of the code points, in order.

        The bytes are filtered three times, each time fewer of them: by lead byte, by the first two bytes, by value.
        """
        none = np.zeros(0, np.int64)
        if not self.ranges or not len(texts):
            return none
        _, offsets, data = texts.buffers()
        bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        if bounds[0] == bounds[-1]:
            return none
        text = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]
        at = _positions(text, self._first_bytes)
        at = at[self._leads[text[at].astype(np.uint16) << 8 | text[np.minimum(at + 1, len(text) - 1)]]]
        if not len(at):
            return none
        found = _decode(text, at)
        place = np.maximum(np.searchsorted(self._firsts, found, side="right") - 1, 0)
        at = at[(self._firsts[place] <= found) & (found <= self._lasts[place])]
        return np.unique(np.searchsorted(bounds - bounds[0], at, side="right") - 1)


def _lead(codepoint: int) -> int:
    """The first two bytes of the UTF-8 of a code point above ASCII, as a number."""
    first, second, *_ = chr(codepoint).encode("utf-8", "surrogatepass")
    return first << 8 | second


def _positions(text: npt.NDArray[np.uint8], wanted: npt.NDArray[np.uint8]) -> Integers:
    """Where `text` may have one of the bytes `wanted`, at least.

    Comparing with each of a few bytes is cheaper than looking at all that follow from what is above the lowest, and
    what stays in the cache meanwhile is compared several times as fast.
    """
    places = [np.zeros(0, np.int64)]
    for start in range(0, len(text), BLOCK_BYTES):
        block = text[start : start + BLOCK_BYTES]
        if len(wanted) > MAX_COMPARED:
            found = block >= wanted[0]
        else:
            found = block == wanted[0]
            for byte in wanted[1:]:
                found |= block == byte
        if len(at := np.flatnonzero(found)):
            places.append(start + at)
    return np.concatenate(places)


def _decode(text: npt.NDArray[np.uint8], at: Integers) -> Integers:
    """The code points, of two bytes and more, whose UTF-8 starts at each place."""
    lead, second, third, fourth = (text[np.minimum(at + i, len(text) - 1)].astype(np.int64) for i in range(4))
    second, third, fourth = second & 63, third & 63, fourth & 63
    two, three = (lead & 31) << 6 | second, (lead & 15) << 12 | second << 6 | third
    four = (lead & 7) << 18 | second << 12 | third << 6 | fourth
    return np.where(lead < 0xE0, two, np.where(lead < 0xF0, three, four))
