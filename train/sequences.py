"""What a view gives of some chunks.

Legend: B sequences, T positions.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shared.cursor import Chunks

DIGEST_BYTES = 16


class Sequences(NamedTuple):
    """Chunks as they are stored."""

    ids: npt.NDArray[np.unsignedinteger]
    """(B, width), of which the first T are the inputs and the last T the targets: T + 1 where those overlap."""
    num_targets: Chunks
    """Of each sequence: its first targets are real, what is behind them pads."""
    row_digests: npt.NDArray[np.uint8]
    """(B, DIGEST_BYTES): a hash of all that is in each sequence."""
    starts_BT: npt.NDArray[np.int32] | None = None
    """The first position of the document that each position is in; None unless the recipe asks for it."""


class Spans(NamedTuple):
    """Runs of ids that chunks were cut from, in the order in which they are read."""

    shards: Chunks
    starts: Chunks
    """Ids from the start of each shard."""
    sizes: Chunks
    """Ids: the inputs, and the target of the last of them."""
    rows: Chunks
    """Which of the chunks each is in."""
    places: Chunks
    """Where the inputs begin in the chunk."""


def join_digests(digests: Iterable[bytes]) -> npt.NDArray[np.uint8]:
    """(B, DIGEST_BYTES) of a digest for each sequence."""
    return np.frombuffer(bytearray().join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


def spread(begins: Chunks, counts: Chunks, length: int) -> npt.NDArray[np.int32]:
    """(B, T): of each position, where the document it is in begins.

    `begins` are the documents of all sequences end to end, of which each has so many as `counts` says.

    >>> spread(np.array([0, 2, 0]), np.array([2, 1]), 4).tolist()
    [[0, 0, 2, 2], [0, 0, 0, 0]]
    """
    ends = np.append(begins[1:], 0)
    ends[np.cumsum(counts) - 1] = length
    return np.repeat(begins.astype(np.int32), ends - begins).reshape(-1, length)
