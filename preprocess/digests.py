"""A 128-bit hash of every text: what makes two texts the same, and what draws a text for validation."""

import hashlib
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

DIGEST_BYTES = 16
Digests = npt.NDArray[np.uint64]


def text_digests(texts: Any) -> Digests:
    """(texts, 2): the halves of a BLAKE2b hash of each text of a large_string array.

    >>> import pyarrow as pa
    >>> same, other, again = text_digests(pa.array(["a", "b", "a"], pa.large_string())).tolist()
    >>> same == again, same == other
    (True, False)
    """
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist() if offsets else []
    view = memoryview(data) if data else memoryview(b"")
    hashes = [hashlib.blake2b(view[start:stop], digest_size=DIGEST_BYTES).digest() for start, stop in pairwise(bounds)]
    return np.frombuffer(b"".join(hashes), "<u8").reshape(len(texts), 2)


def is_drawn(digests: Digests, share: float) -> npt.NDArray[np.bool_]:
    """Which texts belong to a `share` of all, drawn by their digest: the same text always is or never.

    A larger share has all texts of a smaller one.
    """
    return digests[:, 0] < np.uint64(int(share * 2**64))
