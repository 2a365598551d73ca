"""What a tokenizer makes of a sample: how often each id is given, and bytes per token, overall and by language."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from preprocess.batches import text_sizes
from preprocess.choose import Engines
from preprocess.encode import EngineError, Lengths
from preprocess.engines import byte_letters
from preprocess.sampling import Rows
from preprocess.tokenizer import LoadedTokenizer
from shared.errors import InputError

LANGUAGE = "language"  # the column of FineWeb's files
BYTES_BY_LETTER = {letter: byte for byte, letter in enumerate(byte_letters())}
Counts = npt.NDArray[np.int64]


@dataclass
class Usage:
    """Documents, their bytes and the tokens that these became, without any end of a document."""

    num_documents: int = 0
    text_bytes: int = 0
    num_tokens: int = 0

    @property
    def bytes_per_token(self) -> float:
        """0 if there is no token."""
        return self.text_bytes / self.num_tokens if self.num_tokens else 0.0

    def add(self, num_documents: int, text_bytes: int, num_tokens: int) -> None:
        """Count more."""
        self.num_documents += num_documents
        self.text_bytes += text_bytes
        self.num_tokens += num_tokens


@dataclass
class Measured:
    """The usage of a sample: in all, by language (None: not told), and how often each id is given."""

    counts: Counts
    total: Usage = field(default_factory=Usage)
    languages: dict[str | None, Usage] = field(default_factory=lambda: defaultdict(Usage))


def measure(
    tokenizer: LoadedTokenizer, rows: Iterable[Rows], engines: Engines, say: Callable[[str], None] = print
) -> Measured:
    """The usage of `rows`, texts with their languages, as the first engine gives it that passes its checks.

    Raises: InputError if there is no text.
    """
    batches = list(rows)  # a sample is small, and may have to be encoded again
    for check in engines.checks(0, sum(len(texts) for texts, _ in batches)):
        measured = Measured(np.zeros(tokenizer.identity.vocab_size, np.int64))
        try:
            for texts, languages in batches:
                ids, lengths = check.encode(texts)
                measured.counts += np.bincount(ids, minlength=len(measured.counts))
                _count(measured, text_sizes(texts), lengths, languages)
            check.finish()
        except EngineError as error:
            say(f"measuring again with the next engine: {check.candidate.label} gave {error}")
            continue
        if not measured.total.num_documents:
            raise InputError("the sample has no text: every text in it is null or empty; name an input that holds text")
        return measured
    raise AssertionError("the last engine is the reference, which has no other to differ from")


def _count(measured: Measured, sizes: Counts, lengths: Lengths, languages: pa.Array | None) -> None:
    sums = len(sizes), int(sizes.sum()), int(lengths.sum())
    measured.total.add(*sums)
    if languages is None:
        measured.languages[None].add(*sums)
        return
    coded = languages.dictionary_encode("encode")
    codes, names = coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.to_pylist()
    documents = np.bincount(codes, minlength=len(names))
    text_bytes, tokens = (np.bincount(codes, weights, len(names)).astype(np.int64) for weights in (sizes, lengths))
    for name, *counts in zip(names, documents.tolist(), text_bytes.tolist(), tokens.tolist(), strict=True):
        measured.languages[name].add(*counts)


class Entry(NamedTuple):
    """An id, the bytes that it stands for (None: it is a special token's) and how often the sample uses it."""

    id: int
    name: str
    spelled: bytes | None
    uses: int

    @property
    def size_bytes(self) -> int:
        """Bytes of text that it stands for."""
        return len(self.spelled or b"")

    @property
    def text(self) -> str:
        """What it stands for, bytes that are no whole character escaped."""
        return self.name if self.spelled is None else self.spelled.decode(errors="backslashreplace")


def entries(tokenizer: LoadedTokenizer, counts: Counts) -> list[Entry]:
    """All entries of the vocabulary, by id."""
    added = tokenizer.tokenizer.get_added_tokens_decoder()
    specials = {number for number, token in added.items() if token.special}
    vocabulary = tokenizer.tokenizer.get_vocab(with_added_tokens=True)
    return [
        Entry(number, name, None if number in specials else spelled_bytes(name), int(counts[number]))
        for name, number in sorted(vocabulary.items(), key=lambda item: item[1])
    ]


def spelled_bytes(name: str) -> bytes:
    r"""The bytes that the entry `name` of a byte-level vocabulary stands for; of another vocabulary, those of its name.

    >>> spelled_bytes("\u0120caf\u00c3\u00a9")
    b' caf\xc3\xa9'
    """
    found = [BYTES_BY_LETTER.get(letter) for letter in name]
    return name.encode() if None in found else bytes(byte for byte in found if byte is not None)


def largest_languages(measured: Measured, most: int) -> list[tuple[str | None, Usage]]:
    """The languages with most bytes, and behind them the sum of all others if there are any."""
    ordered = sorted(measured.languages.items(), key=lambda item: (-item[1].text_bytes, str(item[0])))
    others = Usage()
    for _, usage in ordered[most:]:
        others.add(usage.num_documents, usage.text_bytes, usage.num_tokens)
    return ordered[:most] + [(f"{len(ordered) - most:,} others", others)][: len(ordered) > most]


def unused(all_entries: Sequence[Entry]) -> list[Entry]:
    """Entries that text could have given and that the sample has not."""
    return [entry for entry in all_entries if entry.spelled is not None and not entry.uses]
