"""One shard through one engine, distrusted: what is routed around it, and what is compared with the reference engine.

All ids must be of the vocabulary and, where its ids spell texts out, add up to the bytes of the texts.
The sample of a shard is a function of its rows alone: texts drawn by hash of their row, the longest that is still
cheap, and those with the least ASCII, which is where engines have been wrong.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.batches import text_sizes
from preprocess.codepoints import CodePoints
from preprocess.encode import Engine, EngineError, Ids, Lengths, unequal_texts
from preprocess.spelling import ByteLengths, spelled_bytes

MIN_BY_HASH, MAX_BY_HASH, ROWS_PER_DRAWN = 3, 28, 2048  # so that small shards do not spend their time on it
SAMPLE_LONGEST, SAMPLE_LEAST_ASCII = 1, 3
MAX_SAMPLED_BYTES = 16 << 10
PROBES, MAX_COUNTED = 32, 16  # bytes of a text that are looked at; texts of a batch whose letters are counted
FIRST_ABOVE_ASCII = 0x80
KEYS = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True)
class Candidate:
    """An engine that was found right at load, but for texts with a code point in `unlike`."""

    engine: Engine
    unlike: CodePoints

    @property
    def label(self) -> str:
        """Name and version."""
        return f"{self.engine.name} {self.engine.version}"


@dataclass(frozen=True)
class Sampled:
    """A text of the sample and the ids that the engine gave for it; a higher score is kept longer."""

    score: float
    row: int
    text: str
    ids: Ids


class ShardCheck:
    """Encodes the texts of one shard with `candidate` and remembers what is to be compared.

    With a `second` engine every text is encoded by both. Nothing is compared when the candidate is the reference.
    `byte_lengths` are the bytes of text behind each id, if ids spell texts out.
    """

    def __init__(
        self,
        candidate: Candidate,
        reference: Engine,
        second: Candidate | None,
        byte_lengths: ByteLengths | None,
        first_row: int,
        num_rows: int,
    ) -> None:
        self.candidate, self.second = candidate, second
        self._byte_lengths = byte_lengths
        self.num_routed = self.num_sampled = 0
        self._reference = reference
        self._first_row, self._row = first_row, 0
        self._drawn = drawn_rows(first_row, num_rows)
        self._by_hash: list[Sampled] = []
        self._longest: list[Sampled] = []
        self._least_ascii: list[Sampled] = []

    @property
    def is_reference(self) -> bool:
        """Whether there is no engine to fall back to."""
        return self.candidate.engine is self._reference

    def encode(self, texts: Any) -> tuple[Ids, Lengths]:
        """As `Engine.encode`, for the next texts of the shard.

        Raises: EngineError if the engine fails or the second engine gives other ids.
        """
        if self.is_reference:
            return self._reference.encode(texts)
        encoded, num_routed = self._routed(self.candidate, texts)
        self.num_routed += num_routed
        if self.second is not None:
            unequal = unequal_texts(encoded, self._routed(self.second, texts)[0])
            if len(unequal):
                raise EngineError(self._complaint(self._row + int(unequal[0]), self.second.label))
        self._remember(texts, *encoded)
        self._row += len(texts)
        return encoded

    def check_ids(self, ids: Ids, vocab_size: int, text_bytes: int) -> None:
        """Nothing, if `ids`, all that `text_bytes` bytes of text gave, are ids below `vocab_size` that spell them.

        Raises: EngineError if not.
        """
        if (highest := int(ids.max(initial=0))) >= vocab_size:
            raise EngineError(f"id {highest:,} where ids below {vocab_size:,} are wanted")
        if self._byte_lengths is None:
            return
        assert highest < max(len(self._byte_lengths), 1), "each id has an entry, and nothing is looked up beyond"
        if (spelled := spelled_bytes(self._byte_lengths, ids)) != text_bytes:
            raise EngineError(f"ids that spell {spelled:,} bytes for {text_bytes:,} bytes of text")

    def finish(self) -> None:
        """Compare the sample with the reference engine.

        Raises: EngineError naming the first row that differs.
        """
        if self.is_reference:
            return
        sample = sorted(
            {kept.row: kept for kept in (*self._by_hash, *self._longest, *self._least_ascii)}.values(),
            key=lambda kept: kept.row,
        )
        lengths = np.array([len(kept.ids) for kept in sample], np.int64)
        ids = np.concatenate([np.zeros(0, np.uint32), *(kept.ids for kept in sample)])
        wanted = self._reference.encode(pa.array([kept.text for kept in sample], pa.large_string()))
        unequal = unequal_texts((ids, lengths), wanted)
        if len(unequal):
            raise EngineError(self._complaint(sample[unequal[0]].row, self._reference.name))
        self.num_sampled = len(sample)

    def receipt(self) -> dict[str, Any]:
        """How the ids were made and what they were held against."""
        return {
            "engine": self.candidate.engine.name,
            "engine_version": self.candidate.engine.version,
            "num_routed": self.num_routed,
            "num_sampled": self.num_sampled,
            "compared_with": self.second.label if self.second else None,
        }

    def _complaint(self, row: int, other: str) -> str:
        return f"other ids than {other} for row {self._first_row + row}"

    def _routed(self, candidate: Candidate, texts: Any) -> tuple[tuple[Ids, Lengths], int]:
        """`texts` encoded by `candidate`, those it does not see as the reference does by the reference."""
        routed = candidate.unlike.texts_with(texts)
        if not len(routed):
            return candidate.engine.encode(texts), 0
        is_routed = np.zeros(len(texts), np.bool_)
        is_routed[routed] = True
        others = candidate.engine.encode(texts.filter(pa.array(~is_routed)))
        return interleave(is_routed, self._reference.encode(texts.take(pa.array(routed))), others), len(routed)

    def _remember(self, texts: Any, ids: Ids, lengths: Lengths) -> None:
        sizes = text_sizes(texts)
        cheap = (sizes > 0) & (sizes <= MAX_SAMPLED_BYTES)
        if not cheap.any():
            return
        ends = np.cumsum(lengths)

        def keep(best: list[Sampled], number: int, score: float, most: int) -> None:
            if len(best) < most or score > best[-1].score:
                own = ids[ends[number] - lengths[number] : ends[number]].copy()
                best.append(Sampled(score, self._row + number, texts[number].as_py(), own))
                best.sort(key=lambda kept: -kept.score)
                del best[most:]

        for row in self._drawn[(self._drawn >= self._row) & (self._drawn < self._row + len(texts))]:
            if cheap[row - self._row]:
                keep(self._by_hash, int(row) - self._row, 0.0, len(self._drawn))
        size_scores = np.where(cheap, sizes, 0)
        keep(self._longest, int(size_scores.argmax()), float(size_scores.max()), SAMPLE_LONGEST)
        for number, share in least_ascii(texts, np.flatnonzero(cheap)):
            keep(self._least_ascii, number, share, SAMPLE_LEAST_ASCII)


def least_ascii(texts: Any, numbers: npt.NDArray[np.int64]) -> list[tuple[int, float]]:
    """Those of `numbers`, none of an empty text, with little ASCII: most first, with the bytes beyond one a letter.

    A few bytes of every text tell which are worth counting; the number is a share of all bytes.

    >>> texts = pa.array(["a", "\u6d77", "\u6d77a"], pa.large_string())
    >>> least_ascii(texts, np.arange(3))
    [(1, 0.6666666666666666), (2, 0.5)]
    """
    bounds = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    starts, sizes = bounds[numbers], bounds[numbers + 1] - bounds[numbers]
    probes = starts[:, None] + (sizes[:, None] * (np.arange(PROBES) + 0.5) / PROBES).astype(np.int64)
    guesses = (np.frombuffer(texts.buffers()[2], np.uint8)[probes] >= FIRST_ABOVE_ASCII).mean(axis=1)
    likely = np.argsort(-guesses, kind="stable")[:MAX_COUNTED]
    letters = pc.utf8_length(texts.take(pa.array(numbers[likely]))).to_numpy()
    beyond = (sizes[likely] - letters) / sizes[likely]
    shares = [(int(number), float(share)) for number, share in zip(numbers[likely], beyond, strict=True)]
    return [(number, share) for number, share in sorted(shares, key=lambda pair: -pair[1]) if share > 0]


def drawn_rows(first_row: int, num_rows: int) -> npt.NDArray[np.int64]:
    """The rows of a shard, counted from its first, with the lowest hashes of their number in the source.

    >>> [len(drawn_rows(0, num_rows)) for num_rows in (3, 1000, 10_000, 100_000)]
    [3, 3, 4, 28]
    """
    num_drawn = min(max(num_rows // ROWS_PER_DRAWN, MIN_BY_HASH), MAX_BY_HASH)
    numbers = np.arange(first_row, first_row + num_rows, dtype=np.uint64) + np.uint64(1)
    mixed = numbers * KEYS[0]
    mixed = (mixed ^ (mixed >> np.uint64(31))) * KEYS[1]
    return np.sort(np.argsort(mixed, kind="stable")[:num_drawn])


def interleave(
    is_first: npt.NDArray[np.bool_], first: tuple[Ids, Lengths], second: tuple[Ids, Lengths]
) -> tuple[Ids, Lengths]:
    """One encoding of all texts from that of the texts where `is_first` holds and that of the others.

    >>> one, two = (np.array([7, 8]), np.array([2])), (np.array([1, 3]), np.array([1, 1]))
    >>> [part.tolist() for part in interleave(np.array([False, True, False]), one, two)]
    [[1, 7, 8, 3], [1, 2, 1]]
    """
    lengths = np.empty(len(is_first), np.int64)
    lengths[is_first], lengths[~is_first] = first[1], second[1]
    from_first = np.repeat(is_first, lengths)
    ids = np.empty(len(from_first), np.uint32)
    ids[from_first], ids[~from_first] = first[0], second[0]
    return ids, lengths
