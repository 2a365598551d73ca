"""Pure: whether chunks hold every target of the documents exactly once, found without the code that placed them."""

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def is_covered(chunks: npt.NDArray, pieces: npt.NDArray, offsets: Integers, longest: int | None) -> bool:
    """Whether the pieces, put end to end again, are the documents between each two of `offsets`, whole and once each.

    Documents of more than `longest` targets must not be among them.
    """
    return all(map(np.array_equal, _runs(chunks, pieces), _wanted(offsets, longest)))


def _runs(chunks: npt.NDArray, pieces: npt.NDArray) -> tuple[Integers, Integers]:
    """Where each unbroken run of inputs begins and ends in the shard."""
    targets = chunks["num_targets"].astype(np.int64)
    before = np.cumsum(targets) - targets  # targets of the chunks before
    begins = np.repeat(before, chunks["num_pieces"]) + pieces["place"]
    sizes = np.diff(begins, append=targets.sum())
    order = np.argsort(pieces["start"], kind="stable")
    starts = pieces["start"][order].astype(np.int64)
    ends = starts + sizes[order]
    is_first = np.ones(len(starts), np.bool_)
    is_first[1:] = starts[1:] != ends[:-1]
    return starts[is_first], ends[np.roll(is_first, -1)]


def _wanted(offsets: Integers, longest: int | None) -> tuple[Integers, Integers]:
    """Where the inputs of each document begin and end; its last id is a target only."""
    first, end = offsets[:-1], offsets[1:] - 1
    kept = (end > first) if longest is None else (end > first) & (end - first <= longest)
    return first[kept], end[kept]
