"""How many bytes of text every id stands for: what the ids of a text must add up to.

A byte-level vocabulary spells every text out, so the bytes behind the ids of a text are the bytes of the text. This is
the one check that looks at every id, and it knows nothing of engines.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.encode import Ids, Lengths
from preprocess.engines import Document

ByteLengths = npt.NDArray[np.uint16]


def byte_lengths(document: Document, texts: Sequence[str], encoded: tuple[Ids, Lengths]) -> ByteLengths | None:
    """Bytes of text behind each id of the tokenizer.json `document`, if its ids spell texts out; None if they do not.

    Whether they do is not read from the file but seen: `encoded` is what the reference engine gives for `texts`, odd
    ones, and each must be as long as its ids say. A tokenizer that normalizes, or whose letters are no bytes, fails.
    """
    lengths = letters_of_entries(document)
    ids, numbers = encoded
    ends = np.concatenate([[0], np.cumsum(lengths[ids], dtype=np.int64)])[np.concatenate([[0], np.cumsum(numbers)])]
    sizes = [len(text.encode()) for text in texts]
    return lengths if np.diff(ends).tolist() == sizes else None


def letters_of_entries(document: Document) -> ByteLengths:
    """Letters in the entry of each id of the tokenizer.json `document`: a byte each, if its vocabulary is of bytes.

    An added token stands for the text that it is; an id without an entry for none.
    """
    entries = document["model"].get("vocab") or {}
    pairs = entries.items() if isinstance(entries, dict) else ((entry, i) for i, (entry, _) in enumerate(entries))
    sizes = {number: len(entry) for entry, number in pairs}
    sizes |= {token["id"]: len(token["content"].encode()) for token in document.get("added_tokens") or []}
    lengths = np.zeros(max(sizes) + 1, np.uint16)
    lengths[list(sizes)] = np.minimum(list(sizes.values()), np.iinfo(np.uint16).max)
    return lengths


def spelled_bytes(lengths: ByteLengths, ids: npt.NDArray[np.unsignedinteger]) -> int:
    """Bytes of text behind `ids`, all of which must be below the number of `lengths`.

    Arrow looks them up twice as fast as numpy, which widens every index first.

    >>> spelled_bytes(np.array([1, 3], np.uint16), np.array([0, 1, 1], np.uint32))
    7
    """
    return pc.sum(pc.take(pa.array(lengths), pa.array(ids), boundscheck=False), min_count=0).as_py() or 0
