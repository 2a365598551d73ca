"""tokenizer.json: loaded, and its identity: what a dataset says about the ids it holds.

Ids must be the same whenever a text is encoded, so a tokenizer that drops merges at random is refused, and a few
texts with their ids (golden vectors) travel with the dataset to show that another release still gives the same.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from preprocess.config import END_OF_DOCUMENT
from shared.errors import InputError
from shared.files import read_bytes
from shared.format import GoldenVector, TokenizerIdentity
from shared.terminal import safe_text

KNOWN_ENDS = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
GOLDEN_SPECIALS = 16  # some tokenizers have a thousand
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
        raw = read_bytes(path)
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
        raise InputError(f"{name} has dropout {dropout:g}: ids would be random; set it to null in the file")
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
            golden=golden_vectors(tokenizer, golden_texts(tokenizer)),
        ),
    )


def load_again(raw: bytes, identity: TokenizerIdentity) -> LoadedTokenizer:
    """The tokenizer that was loaded from `raw` before, in another process, and whose identity is known from there."""
    return LoadedTokenizer(raw, _parse(raw)[0], identity)


@lru_cache(maxsize=2)  # what is given is made again from the same bytes where shards are written
def _parse(raw: bytes) -> tuple[Tokenizer, float | None]:
    """The tokenizer that `raw` describes, set to treat every text as plain text, and its dropout."""
    tokenizer = Tokenizer.from_str(raw.decode())
    dropout: float | None = getattr(tokenizer.model, "dropout", None)  # only BPE has it
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer, dropout


def golden_texts(tokenizer: Tokenizer) -> list[str]:
    """The texts of the golden vectors: the same for all tokenizers, and one that spells its own special tokens."""
    added = tokenizer.get_added_tokens_decoder()
    names = [added[number].content for number in sorted(added) if added[number].special]
    return [*GOLDEN_TEXTS, f"a{' '.join(names[:GOLDEN_SPECIALS])}b"]


def golden_vectors(tokenizer: Tokenizer, texts: Sequence[str]) -> list[GoldenVector]:
    """The texts with the ids that `tokenizer` gives them now."""
    return [GoldenVector(text, tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]


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
