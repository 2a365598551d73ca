"""How long the documents of a dataset are and how often it has each id: of all that it holds, or of a stated sample.

What is looked at is bounded, so that a dataset of any size is surveyed in about a second: up to `MOST_IDS` ids and
`MOST_DOCUMENTS` documents are counted, all of them if there are no more, else some that the seed decides.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.directories import listing
from shared.errors import FormatError
from shared.format import Index, documents_path, open_documents, open_tokens, tokens_path

MOST_IDS = 1 << 27
BLOCK_IDS = 1 << 18
MOST_DOCUMENTS = 1 << 21
MOST_SHARDS = 1000
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
MISSING = "its files are missing"

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bin:
    """`count` values from `low` to `high`, both included."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class Spread:
    """How some whole numbers are spread: bins that double in width, and quantiles."""

    bins: list[Bin]
    mean: float
    smallest: int
    largest: int
    quantiles: dict[str, int]


@dataclass(frozen=True)
class Survey:
    """What was counted. `problems` are the shards that could not be, by number.

    `counts` are uses of each id in `num_ids` ids, `lengths` tokens (end of document included) of `num_documents`
    documents, `chunks` how many chunks have a part of each; they are None where no document was found.
    """

    problems: dict[int, str]
    counts: Numbers
    num_ids: int
    has_all_ids: bool
    num_documents: int
    has_all_documents: bool
    lengths: Spread | None
    chunks: Spread | None


@dataclass
class _Shards:
    """The shards of a dataset, and what is wrong with those that cannot be read."""

    directory: Path
    index: Index
    problems: dict[int, str] = field(default_factory=dict)

    def tokens(self, shard: int) -> npt.NDArray[np.unsignedinteger]:
        return open_tokens(self.directory, self.index, shard)[: self.index.shards[shard].num_tokens]

    def offsets(self, shard: int) -> Numbers:
        offsets = open_documents(self.directory, self.index, shard).astype(np.int64)
        if not (offsets[0] == 0 and (np.diff(offsets) >= 0).all()):
            raise FormatError(f"{documents_path(self.directory, shard)} does not rise from 0: run `make verify`")
        return offsets

    def readable(self) -> list[int]:
        return [shard for shard in range(len(self.index.shards)) if shard not in self.problems]


def survey(directory: Path, index: Index, seed: int = 0) -> Survey:
    """What the dataset in `directory` holds; shards that are missing or damaged are told, not counted."""
    shards = _Shards(directory, index)
    there = {path.name for path in listing(directory)}
    for shard in range(len(index.shards)):
        if not {tokens_path(directory, shard).name, documents_path(directory, shard).name} <= there:
            shards.problems[shard] = MISSING
    num_documents, has_all_documents, lengths, parts = _documents(shards, seed)
    counts, has_all_ids = _count_ids(shards, seed)
    return Survey(
        shards.problems,
        counts,
        int(counts.sum()),
        has_all_ids,
        num_documents,
        has_all_documents,
        spread(lengths),
        spread(parts),
    )


def spread(values: Numbers) -> Spread | None:
    """How `values`, all at least 1, are spread; None if there are none.

    >>> spread(np.array([1, 2, 3, 9])).bins[:3]
    [Bin(low=1, high=1, count=1), Bin(low=2, high=3, count=2), Bin(low=4, high=7, count=0)]
    """
    if not len(values):
        return None
    octaves = np.bincount(np.frexp(values.astype(np.float64))[1] - 1).tolist()
    first = next(octave for octave, count in enumerate(octaves) if count)
    bins = [Bin(1 << octave, (2 << octave) - 1, count) for octave, count in enumerate(octaves) if octave >= first]
    quantiles = np.quantile(values, QUANTILES, method="inverted_cdf").tolist()
    named = {f"{share:g}": int(value) for share, value in zip(QUANTILES, quantiles, strict=True)}
    return Spread(bins, float(values.mean()), int(values.min()), int(values.max()), named)


def _documents(shards: _Shards, seed: int) -> tuple[int, bool, Numbers, Numbers]:
    """How many documents were looked at, whether they are all, their lengths, and chunks with a part of each."""
    rows, length = shards.index.column("num_rows"), shards.index.chunk_length
    chosen, left = shards.readable(), MOST_DOCUMENTS
    if len(chosen) > MOST_SHARDS or sum(rows[shard] for shard in chosen) > MOST_DOCUMENTS:
        random.Random(seed).shuffle(chosen)
    lengths, parts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for shard in chosen[:MOST_SHARDS]:
        if left <= 0:
            break
        try:
            offsets = shards.offsets(shard)
        except FormatError as error:
            shards.problems[shard] = str(error)
            continue
        sizes = np.diff(offsets)
        held = np.flatnonzero(sizes)  # a row that is no document has no token
        begin, end = offsets[:-1][held], offsets[1:][held]
        lengths.append(sizes[held])
        parts.append((end - 1) // length - begin // length + 1)
        left -= rows[shard]
    every = np.concatenate(lengths)
    return len(every), len(every) == sum(shards.index.column("num_documents")), every, np.concatenate(parts)


def _count_ids(shards: _Shards, seed: int) -> tuple[Numbers, bool]:
    """How often each id is there, and whether all ids were looked at."""
    index = shards.index
    counts = np.zeros(index.tokenizer.vocab_size, np.int64)
    for shard, start in _blocks(index.shard_tokens(), shards.readable(), seed):
        if shard in shards.problems:
            continue
        try:
            found = np.bincount(shards.tokens(shard)[start : start + BLOCK_IDS], minlength=len(counts))
        except FormatError as error:
            shards.problems[shard] = str(error)
            continue
        if len(found) > len(counts):
            shards.problems[shard] = f"it has id {len(found) - 1:,}, ids below {len(counts):,} are wanted"
            continue
        counts += found
    return counts, int(counts.sum()) == index.num_tokens


def _blocks(tokens: Sequence[int], readable: Sequence[int], seed: int) -> Iterator[tuple[int, int]]:
    """Shard and start of all blocks of ids, or of as many of them as are to be looked at, in their order."""
    numbers = np.array([-(-tokens[shard] // BLOCK_IDS) for shard in readable], np.int64)
    ends = np.cumsum(numbers)
    total, most = int(numbers.sum()), MOST_IDS // BLOCK_IDS
    whole = sum(tokens[shard] for shard in readable) <= MOST_IDS and len(readable) <= MOST_SHARDS
    places = range(total) if whole else sorted(random.Random(seed).sample(range(total), min(most, total)))
    for place in places:
        which = int(np.searchsorted(ends, place, side="right"))
        yield readable[which], (place - int(ends[which] - numbers[which])) * BLOCK_IDS
