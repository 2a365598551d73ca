"""Chunks of a dataset, each cut into the documents that it is of."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from preprocess.tokenizer import load_tokenizer
from shared.errors import ConfigError
from shared.format import TOKENIZER_NAME, Index, chunks_of, open_documents, open_tokens, read_index
from shared.terminal import safe_text


@dataclass(frozen=True)
class Piece:
    """The part of a document that is in a chunk: tokens `start` to `stop` of the document's `num_tokens`.

    `id`, `url` and `date` are what its input row says, if anything; `problem` is why it cannot be asked.
    """

    source: str
    row: int
    start: int
    stop: int
    num_tokens: int
    ids: list[int]
    text: str
    id: str | None = None
    url: str | None = None
    date: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Chunk:
    """One chunk: `num_padding` of its ids stand behind the shard's last document."""

    number: int
    shard: int
    offset: int
    num_padding: int
    ids: list[int]
    documents: list[Piece]


class Chunks:
    """The chunks of a dataset, counted over all shards in natural order; without a tokenizer they have no text."""

    def __init__(self, directory: Path, index: Index, tokenizer: Tokenizer | None) -> None:
        self._directory, self._index, self._tokenizer = directory, index, tokenizer

    @cached_property
    def bounds(self) -> npt.NDArray[np.int64]:
        """Where the chunks of each shard begin, and the number of all."""
        counts = chunks_of(np.array(self._index.shard_tokens(), np.int64), self._index.chunk_length)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def drawn(self, number: int, seed: int, shards: Sequence[int]) -> list[int]:
        """Up to `number` different chunks of some shards, ascending: the same for the same seed."""
        sizes = np.diff(self.bounds)[list(shards)]
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        places = np.array(sorted(random.Random(seed).sample(range(total), min(number, total))), np.int64)
        which = np.searchsorted(ends, places, side="right")
        firsts = self.bounds[:-1][list(shards)] - (ends - sizes)
        numbers: list[int] = (places + firsts[which]).tolist()
        return numbers

    def read(self, number: int) -> Chunk:
        """Chunk `number`.

        Raises: ConfigError if there is no such chunk; FormatError if its shard's files are not what the index says.
        """
        self._check(number)
        shard = int(np.searchsorted(self.bounds, number, side="right")) - 1
        offset = number - int(self.bounds[shard])
        start = offset * self._index.chunk_length
        tokens = open_tokens(self._directory, self._index, shard)
        ids = tokens[start : start + self._index.chunk_length + 1].tolist()
        num_padding = max(start + len(ids) - self._index.shards[shard].num_tokens, 0)
        return Chunk(number, shard, offset, num_padding, ids, self._pieces(shard, start, ids))

    def _check(self, number: int) -> None:
        total = int(self.bounds[-1])
        if not 0 <= number < total:
            wanted = f"0 to {total - 1:,}" if total else "a dataset with more text"
            name = safe_text(str(self._directory))
            raise ConfigError(f"--chunk is {number:,}; {wanted} is wanted: {name} has {total:,}")

    def _pieces(self, shard: int, start: int, ids: list[int]) -> list[Piece]:
        offsets = open_documents(self._directory, self._index, shard)
        place, stop = self._index.shards[shard], start + len(ids)
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        pieces = []
        for row in range(first, int(np.searchsorted(offsets[:-1], stop, side="left"))):
            begin, end = int(offsets[row]), int(offsets[row + 1])
            if begin == end:  # a null or empty text
                continue
            inside = range(max(begin, start), min(end, stop))
            here = ids[inside.start - start : inside.stop - start]
            text = self._tokenizer.decode(here, skip_special_tokens=False) if self._tokenizer else ""
            source, number = self._index.sources[place.source].path, place.first_row + row
            pieces.append(Piece(source, number, inside.start - begin, inside.stop - begin, end - begin, here, text))
        return pieces


def read_chunk(directory: Path, number: int) -> Chunk:
    """Chunk `number` of the dataset in `directory`, its ids cut into the documents they are of.

    Raises: ConfigError if there is no such chunk.
    """
    index = read_index(directory)
    tokenizer = load_tokenizer(directory / TOKENIZER_NAME, index.tokenizer.end_of_document).tokenizer
    return Chunks(directory, index, tokenizer).read(number)
