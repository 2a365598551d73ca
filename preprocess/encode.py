"""A batch of text -> token ids: what an engine must do, and the engine that defines what is right."""

from itertools import chain
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tokenizers

from preprocess.tokenizer import LoadedTokenizer

Ids = npt.NDArray[np.uint32]
Lengths = npt.NDArray[np.int64]


class Engine(Protocol):
    """Turns text into ids; every engine gives the ids of the reference engine."""

    name: str
    version: str

    def encode(self, texts: Any) -> tuple[Ids, Lengths]:
        """Ids of all texts of a large_string array without nulls, end to end, and how many ids each text has.

        No special token is added, and a text that spells one is ordinary text.
        """
        ...


class ReferenceEngine:
    """The engine that defines what is right: the `tokenizers` library, on all cores."""

    name = "tokenizers"
    version = tokenizers.__version__

    def __init__(self, tokenizer: LoadedTokenizer) -> None:
        self._tokenizer = tokenizer.tokenizer

    def encode(self, texts: Any) -> tuple[Ids, Lengths]:
        """As `Engine.encode`."""
        encodings = self._tokenizer.encode_batch_fast(texts.to_pylist(), add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        return np.fromiter(ids, np.uint32, int(lengths.sum())), lengths
