"""A batch of text -> token ids: what an engine must do, and the engine that defines what is right."""

import os
from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tokenizers

Ids = npt.NDArray[np.uint32]
Lengths = npt.NDArray[np.int64]


class EngineError(Exception):
    """Why an engine cannot be used or must not be trusted; the next one takes over."""


class Engine(Protocol):
    """Turns text into ids; every engine gives the ids of the reference engine, or is not used."""

    name: str
    version: str

    def encode(self, texts: Any) -> tuple[Ids, Lengths]:
        """Ids of all texts of a large_string array without nulls, end to end, and how many ids each text has.

        No special token is added, and a text that spells one is ordinary text.

        Raises: EngineError if the engine cannot do it (the reference engine never does).
        """
        ...


class ReferenceEngine:
    """The engine that defines what is right: the `tokenizers` library."""

    name = "tokenizers"
    version = tokenizers.__version__

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Any) -> tuple[Ids, Lengths]:
        """As `Engine.encode`."""
        encodings = self._tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        return np.fromiter(ids, np.uint32, int(lengths.sum())), lengths


def limit_threads(num_threads: int) -> None:
    """Let every engine of this process use at most `num_threads` threads; call it before any of them has encoded."""
    os.environ["RAYON_NUM_THREADS"] = str(num_threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if num_threads == 1 else "true"


def unequal_texts(one: tuple[Ids, Lengths], other: tuple[Ids, Lengths]) -> npt.NDArray[np.int64]:
    """Numbers of the texts that two encodings of the same texts disagree on.

    >>> lengths = np.array([2, 1, 1])
    >>> unequal_texts((np.array([7, 8, 9, 5]), lengths), (np.array([7, 8, 9, 6]), lengths)).tolist()
    [2]
    """
    (ids, lengths), (other_ids, other_lengths) = one, other
    if np.array_equal(lengths, other_lengths) and np.array_equal(ids, other_ids):
        return np.zeros(0, np.int64)
    same_size = lengths == other_lengths
    ids, other_ids = ids[np.repeat(same_size, lengths)], other_ids[np.repeat(same_size, other_lengths)]
    ends = np.cumsum(lengths[same_size])
    differing = np.searchsorted(ends, np.flatnonzero(ids != other_ids), side="right")
    return np.union1d(np.flatnonzero(~same_size), np.flatnonzero(same_size)[np.unique(differing)])
