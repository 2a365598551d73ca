"""tokenizer.json: loaded or trained, and its identity: what a dataset says about the ids it holds.

Ids must be the same whenever a text is encoded, so a tokenizer that drops merges at random is refused, and a few
texts with their ids (golden vectors) travel with the dataset to show that another release still gives the same.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from preprocess.sources import BadFileError, Footer, read_texts
from preprocess.trainer import train
from shared.errors import InputError
from shared.format import GoldenVector, TokenizerIdentity
from shared.terminal import safe_text

END_OF_DOCUMENT = "<|endoftext|>"
KNOWN_ENDS = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
SAMPLE_PIECES = 256
GOLDEN_TEXTS = (
    "The reader counts chunks; the writer counts tokens.",
    "def area(radius: float) -> float:\n    return 3.14159 * radius**2\n",
    "  two spaces,\ta tab,\r\n\n\n   and runs of      blanks  ",
    "na\u00efve caf\u00e9 \u2014 cafe\u0301; Stra\u00dfe, \u0141\u00f3d\u017a",
    "\u041c\u043e\u0440\u0435 \u0448\u0443\u043c\u0438\u0442. \u0395\u03b4\u03ce \u03b8\u03ac\u03bb\u03b1",
    "\u6d77\u306f\u5e83\u3044\u3002\ubc14\ub2e4 \u0628\u062d\u0631 \u0938\u092e\u0941\u0926\u094d\u0930 \u0e17\u0e30",
    "\U0001f30a\U0001f9d1\U0001f3fd\u200d\U0001f680 1234567890 0x1F 1,000.00",
    "<|endoftext|> in a text is text, and so are </s> and <|im_start|>",
)


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer that treats every text as plain text, the bytes it was made of, and its identity."""

    raw: bytes
    tokenizer: Tokenizer
    identity: TokenizerIdentity


def load_tokenizer(path: Path, end_of_document: str | None) -> LoadedTokenizer:
    """The tokenizer.json at `path`; its end-of-document token is the one named, else the first well-known one.

    Raises: InputError if there is no such file, it is no tokenizer, encodes at random or has no such token.
    """
    name = safe_text(str(path))
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}): name a tokenizer.json file") from None
    return make_tokenizer(raw, name, end_of_document)


def make_tokenizer(raw: bytes, name: str, end_of_document: str | None) -> LoadedTokenizer:
    """The tokenizer that `raw`, the contents of a tokenizer.json, describes; `name` is for messages.

    Raises: InputError as `load_tokenizer`.
    """
    try:
        tokenizer, dropout = _parse(raw)
    except Exception as error:  # the library raises plain Exception
        reason = safe_text(f"{type(error).__name__}: {error}")
        raise InputError(f"{name} is not a tokenizer.json ({reason}): name one that `tokenizers` can load") from None
    if dropout:
        raise InputError(f"{name} has dropout {dropout}: ids would be random; set it to null in the file")
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    end = _end_of_document(name, vocabulary, end_of_document)
    return LoadedTokenizer(
        raw,
        tokenizer,
        TokenizerIdentity(
            sha256=hashlib.sha256(raw).hexdigest(),
            vocab_size=max(vocabulary.values()) + 1,  # not len: some vocabularies have holes
            end_of_document=end,
            end_of_document_id=vocabulary[end],
            golden=golden_vectors(tokenizer),
        ),
    )


@lru_cache(maxsize=2)  # what is given is made again from the same bytes where shards are written
def _parse(raw: bytes) -> tuple[Tokenizer, float | None]:
    """The tokenizer that `raw` describes, set to treat every text as plain text, and its dropout."""
    dropout = json.loads(raw)["model"].get("dropout")
    tokenizer = Tokenizer.from_str(raw.decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer, dropout


def golden_vectors(tokenizer: Tokenizer) -> list[GoldenVector]:
    """The golden texts with the ids that `tokenizer` gives them now."""
    return [GoldenVector(text, tokenizer.encode(text, add_special_tokens=False).ids) for text in GOLDEN_TEXTS]


def train_tokenizer(
    root: Path, footers: Sequence[Footer], column: str, vocab_size: int, sample_bytes: int, *, skip_bad: bool = False
) -> tuple[bytes, int]:
    """The contents of a tokenizer.json trained on the input (byte-level BPE), and its number of entries.

    The same input gives the same bytes. Too little text gives fewer entries than `vocab_size`.
    """

    def sample() -> Iterator[list[str]]:
        return sample_texts(root, footers, column, sample_bytes, skip_bad=skip_bad)

    raw = train(sample, vocab_size, END_OF_DOCUMENT)
    return raw, Tokenizer.from_str(raw.decode()).get_vocab_size()


def sample_texts(
    root: Path, footers: Sequence[Footer], column: str, sample_bytes: int, *, skip_bad: bool = False
) -> Iterator[list[str]]:
    """About `sample_bytes` of text in batches, spread evenly over all row groups; all of it if there is no more.

    Every row group earns its share; one that brings the balance to a worthwhile piece is read from its first row until
    the balance is spent, so that a sample of a huge input opens a few hundred row groups, not all of them.
    """
    total = sum(footer.text_bytes for footer in footers)
    fraction = sample_bytes / total if total > sample_bytes else math.inf
    piece_bytes, balance = max(sample_bytes // SAMPLE_PIECES, 1), 0.0
    for footer in footers:
        for number, group in enumerate(footer.row_groups):
            balance += fraction * group.text_bytes if group.text_bytes else 0.0
            if balance < piece_bytes:
                continue
            texts_read = read_texts(root / footer.path, range(number, number + 1), column, piece_bytes)
            for texts in _readable(texts_read) if skip_bad else texts_read:
                batch = texts.drop_null().to_pylist()
                balance -= sum(len(text.encode()) for text in batch)
                yield batch
                if balance <= 0:
                    break


def _readable(batches: Iterator[Any]) -> Iterator[Any]:
    """What can be read of a file that will be left out, if it is damaged, when its shards are written."""
    with suppress(BadFileError):
        yield from batches


def _end_of_document(name: str, vocabulary: dict[str, int], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in vocabulary:
            raise InputError(
                f"{name} has no token {wanted!r}: name one of its tokens with --end-of-document, for example "
                f"{safe_text(max(vocabulary, key=vocabulary.__getitem__))!r}"
            )
        return wanted
    for token in KNOWN_ENDS:
        if token in vocabulary:
            return token
    raise InputError(
        f"{name} has no end-of-document token (none of {', '.join(KNOWN_ENDS)}): name one with --end-of-document TOKEN"
    )
