"""The fast engines, and what a tokenizer.json may contain for each of them to be right.

Both are optional (`pip install argonne[fast]`) and some fifty times as fast as `tokenizers`. Neither is trusted: a file
with a feature that was not measured to be exact is refused here, and what is accepted is compared with the reference
engine at load (`parity.py`) and in every shard (`check.py`).
"""

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, ClassVar

import numpy as np

from preprocess.encode import EngineError, Ids, Lengths

RENEW_BYTES = 512 << 20  # about 500 MB of cache
Document = dict[str, Any]  # the contents of a tokenizer.json


class GigatokenEngine:
    """gigatoken over Arrow's own buffers.

    Its cache of words grows without bound, so it is loaded anew after every `RENEW_BYTES` of text.
    """

    name = "gigatoken"
    # The regexes it knows are matched as exact strings, and others are an error when it loads.
    NORMALIZERS: ClassVar[frozenset[str]] = frozenset({"NFC"})
    PRE_TOKENIZERS: ClassVar[frozenset[str]] = frozenset({"ByteLevel", "Split"})

    def __init__(self, document: Document, num_threads: int | None = None) -> None:
        self._awkward, self._gigatoken = import_optional("awkward"), import_optional("gigatoken")
        self.version = metadata.version("gigatoken")
        self._json, self._parallel = json.dumps(document), num_threads != 1
        self._load()

    @classmethod
    def refusal(cls, document: Document) -> str | None:
        """Why this engine is not to be used with the tokenizer.json `document`, if it is not."""
        *splits, last = [*_parts(document["pre_tokenizer"])] or [{"type": "none"}]
        patterns = [split["pattern"] for split in splits if split["type"] == "Split"]
        normalized = document["normalizer"] and any(token["normalized"] for token in document["added_tokens"])
        return _refusal(document, cls.NORMALIZERS, cls.PRE_TOKENIZERS) or _first(
            (document["model"].get("end_of_word_suffix"), "its model has an end_of_word_suffix"),
            (last["type"] != "ByteLevel" or len(patterns) < len(splits), "its pre-tokenizer does not end in ByteLevel"),
            (splits and last.get("use_regex", True), "its pre-tokenizer splits twice"),
            (not splits and not last.get("use_regex", True), "its pre-tokenizer splits nothing"),
            (any("Regex" not in pattern for pattern in patterns), "it splits at a plain string"),
            (any(_removes(split) for split in splits), "it removes text (Split behavior Removed)"),
            (normalized, "it has an added token that is normalized, and a normalizer"),
        )

    def encode(self, texts: Any) -> tuple[Ids, Lengths]:
        """As `Engine.encode`."""
        if not len(texts):
            return np.zeros(0, np.uint32), np.zeros(0, np.int64)
        _, offsets, data = texts.buffers()
        bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        size_bytes = int(bounds[-1] - bounds[0])
        if not size_bytes:
            return np.zeros(0, np.uint32), np.zeros(len(texts), np.int64)
        if self._encoded_bytes + size_bytes > RENEW_BYTES and self._encoded_bytes:
            self._load()
        self._encoded_bytes += size_bytes
        with as_engine_error(self.name):
            layout = self._tokenizer.encode_batch(
                self._strings(bounds, np.frombuffer(data, np.uint8)), parallel=self._parallel
            ).layout
            starts: Lengths = np.asarray(layout.offsets.data, np.int64)
            return np.asarray(layout.content.data)[starts[0] : starts[-1]], starts[1:] - starts[:-1]

    def _load(self) -> None:
        self._encoded_bytes = 0
        with as_engine_error(self.name):
            self._tokenizer = self._gigatoken.Tokenizer.from_json(self._json)

    def _strings(self, bounds: Any, data: Any) -> Any:
        """The texts as an awkward array over the same memory."""
        contents = self._awkward.contents
        chars = contents.NumpyArray(data, parameters={"__array__": "char"})
        index = self._awkward.index.Index64(bounds)
        return self._awkward.Array(contents.ListOffsetArray(index, chars, parameters={"__array__": "string"}))


class FastokensEngine:
    """fastokens: any regex, flat memory, the Unicode tables of `tokenizers`; it wants a Python string per text."""

    name = "fastokens"
    NORMALIZERS: ClassVar[frozenset[str]] = frozenset({"NFC", "Lowercase", "Replace", "Prepend"})
    PRE_TOKENIZERS: ClassVar[frozenset[str]] = frozenset({"ByteLevel", "Split", "Digits"})

    def __init__(self, document: Document, num_threads: int | None = None) -> None:  # noqa: ARG002 (limit_threads does)
        fastokens = import_optional("fastokens")
        self.version = metadata.version("fastokens")
        with as_engine_error(self.name):
            self._tokenizer = fastokens.Tokenizer.from_json_str(json.dumps(_without_holes(document)))

    @classmethod
    def refusal(cls, document: Document) -> str | None:
        """Why this engine is not to be used with the tokenizer.json `document`, if it is not."""
        return _refusal(document, cls.NORMALIZERS, cls.PRE_TOKENIZERS)

    def encode(self, texts: Any) -> tuple[Ids, Lengths]:
        """As `Engine.encode`."""
        with as_engine_error(self.name):
            ids, offsets = self._tokenizer.encode_batch_flat(texts.to_pylist(), split_special_tokens=True)
        starts = np.frombuffer(offsets, np.uint64).astype(np.int64)
        return np.frombuffer(ids, np.uint32), starts[1:] - starts[:-1]


def ordinary(document: Document) -> Document:
    """The same tokenizer.json, made to take any text as plain text: nothing is matched, added, cut or padded.

    Added tokens that are not special are matched in text, as `tokenizers` does.
    """
    added = [token for token in document.get("added_tokens") or [] if not token["special"]]
    return {**document, "added_tokens": added, **dict.fromkeys(("truncation", "padding", "post_processor"))}


def byte_letters() -> list[str]:
    """The letter that a byte-level vocabulary writes for each of the 256 bytes.

    Source: bytes_to_unicode in OpenAI's GPT-2: printable Latin-1 stands for itself, the rest follows from U+0100 on.

    >>> byte_letters()[ord("a")], byte_letters()[ord(" ")] == chr(0x120)
    ('a', True)
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _refusal(document: Document, normalizers: frozenset[str], pre_tokenizers: frozenset[str]) -> str | None:
    model = document["model"]
    kinds = [part["type"] for part in _parts(document["pre_tokenizer"])]
    strangers = {part["type"] for part in _parts(document["normalizer"])} - normalizers
    missing = sum(letter not in model["vocab"] for letter in byte_letters()) if model["type"] == "BPE" else 0
    return _first(
        (model["type"] != "BPE", f"its model is {model['type']}, not BPE"),
        (model.get("dropout"), "it has dropout"),
        (model.get("continuing_subword_prefix"), "its model has a continuing_subword_prefix"),
        (model.get("byte_fallback"), "its model has byte_fallback"),
        (missing, f"its vocabulary lacks {missing} of the 256 bytes"),
        (any(token["single_word"] for token in document["added_tokens"]), "it has a single_word added token"),
        (strangers, f"its normalizer is {', '.join(sorted(strangers))}"),
        (not kinds, "it has no pre-tokenizer"),
        (set(kinds) - pre_tokenizers, f"its pre-tokenizer is {', '.join(kinds)}"),
        ("ByteLevel" not in kinds, "its pre-tokenizer does not turn text into bytes"),
    )


def _first(*checks: tuple[object, str]) -> str | None:
    """The reason of the first check that found something."""
    return next((reason for found, reason in checks if found), None)


def _removes(split: Document) -> bool:
    return bool(split["behavior"] == "Removed" and not split["invert"])


def _parts(part: Any) -> Iterator[Any]:
    """The steps of a normalizer or pre-tokenizer, sequences taken apart."""
    if part and part["type"] == "Sequence":
        for inner in part.get("pretokenizers") or part.get("normalizers") or []:
            yield from _parts(inner)
    elif part:
        yield part


def _without_holes(document: Document) -> Document:
    """The same with every unused id of the vocabulary taken by an entry that no text can give.

    U+FFFD is no byte's letter, so no piece of text is ever written with it.
    """
    vocabulary = dict(document["model"]["vocab"])
    highest = max(vocabulary.values())
    vocabulary |= {token["content"]: token["id"] for token in document["added_tokens"] if token["id"] < highest}
    holes = sorted(set(range(highest)) - {*vocabulary.values()})
    model = {**document["model"], "vocab": {**vocabulary, **{f"\ufffd{hole}": hole for hole in holes}}}
    return {**document, "model": model}


def import_optional(name: str) -> Any:
    """The module of that name.

    Raises: EngineError if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise EngineError(f"{name} is not installed (pip install 'argonne[fast]')") from None


@contextmanager
def as_engine_error(name: str) -> Iterator[None]:
    """Whatever goes wrong in the library `name` is an EngineError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        reason = (str(error).splitlines() or [""])[0][:200]
        raise EngineError(f"{name} failed ({type(error).__name__}: {reason})") from None
