"""Whether an engine gives the ids of the reference engine: odd texts at load, and every code point once.

An engine that differs on an odd text is not used. One that only carries Unicode tables of another year is: the code
points on which it differs are found by trying all of them, kept in the user's cache, and texts that hold one are
encoded by the reference engine.
"""

import json
import random
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer

from preprocess.codepoints import CodePoints, Integers
from preprocess.encode import Engine, EngineError, ReferenceEngine, unequal_texts
from preprocess.engines import Document, byte_letters
from preprocess.remember import remembered
from shared.storage import seal
from shared.terminal import safe_text

PROBE = 1  # raise it when what is probed changes: older caches are then not read
BATCH_TEXTS = 16384
RUN = 64
RUNS = (  # ideographs, Hangul, private use, Tangut, and the planes of ideographs and of nothing: looked at in runs
    range(0x3400, 0x9FC0),
    range(0xAC00, 0xD780),
    range(0xE000, 0xF8C0),
    range(0x17000, 0x18CC0),
    range(0x20000, sys.maxunicode + 1),
)
NEIGHBOURS = "aA1!' \n"
ODD = (
    "\x00", "\x00a\x00", "\x01\x02\x7f\x80\x9f", "\ufeffa", "\ufffd", "\ufffe\uffff", "\u200b",
    "\u2028\u2029", "\u0085", "\U0001f9d1\U0001f3fd\u200d\U0001f680", "\u2764\ufe0f\u200d\U0001f525",
    "\U0001f1e9\U0001f1ea", "1\ufe0f\u20e3", "\u0301", "a\u0301\u0323\u0334", "\u0e01\u0e33",
    "\u0915\u094d\u0937", "\u1100\u1161\u11a8", "\uac01\u11a8", "\u212b", "\u6d77\u306f\u5e83\u3044\u3002",
    "\u3042\u3099", "\ubc14\ub2e4", "\u0628\u064e\u062d\u0652\u0631", "\u05e9\u05c1",
    "\u01c5\u1e9e\ufb03\u00df\u0130", "'s't're've'm'll'd", "'S'T'RE'VE'M'LL'D", "'\u017f \u2019s", "x'sy 'll",
    "''''", "1234567890123", "\u0661\u0662\u0663\u0664", "\u00bd\u2460\u2167", "3.14e-10", "0x1F", "a1b2c3",
    "\u4e00\u4e8c\u4e09", "http://a.b/c?d=e&f#g", "//\n///\r\n/", "a\r\n\r\nb\n \n", "\t\t \t", "   a",
    "a   ", " a  b   c    d", "\u3000\u3000a", "AbCdEFgHIjk", "HTTPServer", "snake_case_name",
    "{}[]()<>|\\~`^", "!!!???...---===", "\u2014\u2026\u201c\u201d",
)  # fmt: skip
BLANKS = (" ", "\n", "\t", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\u1680", "\u2009", "\u2028", "\u3000")


def odd_texts(special_tokens: Sequence[str] = ()) -> list[str]:
    """About 300 texts on which tokenizers differ; the same ones every time.

    >>> 280 < len(odd_texts()) < 320
    True
    """
    draw = random.Random(3)
    texts = ["", *ODD, *(f"a{odd} {odd}1{odd}\n{odd}" for odd in ODD)]
    texts += [f"{blank * n}a{blank}{blank}1 {blank * n}" for blank in BLANKS for n in (1, 2, 7)]
    specials = [*special_tokens[:8], "<|endoftext|>", "<|im_start|>", "</s>", "<0x0A>", "\u0120a"]
    texts += [f"{before}{token}{token} b" for token in specials for before in ("", "a", " ")]
    texts += [
        char * 5000 for char in ("a", " ", "\n", "1", "!", "\u00e9", "\u6d77", "\U0001f30a", "ab", "a ", "\u0301")
    ]
    planes = ((0x00, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (0x20000, 0x110000))
    for number in range(126):
        first, end = planes[number % len(planes)]
        texts.append("".join(draw.choice((chr(draw.randrange(first, end)), " ", "a")) for _ in range(60)))
    return texts


class OddTexts:
    """The odd texts with the ids that the reference engine gives them."""

    def __init__(self, reference: Engine, special_tokens: Sequence[str]) -> None:
        self.texts = odd_texts(special_tokens)
        self._array = pa.array(self.texts, pa.large_string())
        self._reference = reference
        self.encoded = reference.encode(self._array)

    def check(self, engine: Engine) -> None:
        """Raise EngineError naming the first odd text on which `engine` is not the reference."""
        unequal = unequal_texts(engine.encode(self._array), self.encoded)
        if len(unequal):
            first, name = safe_text(repr(self.texts[unequal[0]][:40])), self._reference.name
            raise EngineError(f"it gives other ids than {name} for {len(unequal)} odd texts, such as {first}")


def unlike_code_points(
    engine: Engine, load: Callable[[Document], Engine], document: Document, say: Callable[[str], None] = print
) -> CodePoints:
    """The code points on which `engine` for `document` differs from the reference; kept in the user's cache.

    What is asked is another engine of its kind, which `load` makes if the answer is not known.

    They depend on how the tokenizer cuts text into pieces, not on its vocabulary, so all tokenizers that cut alike
    share one answer.

    Raises: EngineError if the engine cannot be probed or differs on ASCII.
    """
    rules = {name: document[name] for name in ("normalizer", "pre_tokenizer")}
    versions = {"engine": f"{engine.name} {engine.version}", "tokenizers": ReferenceEngine.version}
    question = {"probe": PROBE, "python": unicodedata.unidata_version, "rules": seal(rules), **versions}

    def find() -> dict[str, Any]:
        say(f"comparing {engine.name} {engine.version} with tokenizers on every code point (once)")
        probed = probe_document(document)
        found = _probe(load(probed), ReferenceEngine(Tokenizer.from_str(json.dumps(probed))), document)
        if found and min(found) < 0x80:
            raise EngineError(f"it gives other ids than tokenizers for {chr(min(found))!r}")
        return {"ranges": CodePoints.of(found).ranges}

    return CodePoints(remembered("code-points", question, find, say)["ranges"])


def probe_document(document: Document) -> Document:
    """The tokenizer with a vocabulary that shows where it cuts: bytes, and pairs of bytes that only meet in one piece.

    A pair is the end of one character and the start of the next, so ids differ if and only if the pieces do.
    """
    letters = byte_letters()
    ends, leads, neighbours = letters[0x80:0xC0], letters[0xC2:0xF5], [letters[ord(char)] for char in NEIGHBOURS]
    merges = [(one, two) for one in (*neighbours, *ends) for two in leads]
    merges += [(one, two) for one in ends for two in neighbours]
    entries = [*letters, *(one + two for one, two in merges)]
    model = {
        "type": "BPE",
        "vocab": {entry: number for number, entry in enumerate(entries)},
        "merges": [list(merge) for merge in merges],
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {**document, "model": model, "added_tokens": []}


def _probe(engine: Engine, reference: Engine, document: Document) -> set[int]:
    normalized = document["normalizer"] is not None
    found: set[int] = set()
    for blame, texts in _probes(normalized):
        array = pa.array(texts, pa.large_string())
        unequal: Integers = unequal_texts(engine.encode(array), reference.encode(array))
        found.update(codepoint for number in unequal for codepoint in blame[number])
    if normalized:  # what composes with a code point that this Python does not know, nobody here can say
        found.update(code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cn")
    return found


def _probes(normalized: bool) -> Iterator[tuple[list[range], list[str]]]:
    """Texts in batches, each text with the code points that are to blame if an engine differs on it."""
    together = {code for block in RUNS for code in block} | {*range(0xD800, 0xE000)}  # and no surrogates
    single = [range(code, code + 1) for code in range(sys.maxunicode + 1) if code not in together]
    runs = [range(code, code + RUN) for block in RUNS for code in block[::RUN]]
    marks = " a\u0300{0}\u0334" if normalized else ""
    # letter, digit, other, blank; upper or lower; what 's may be folded from; combining class
    context = " {0}Ab a{0}1{0}!{0}'{0}\n{0}\n" + marks
    for start in range(0, len(single), BATCH_TEXTS):
        batch = single[start : start + BATCH_TEXTS]
        yield batch, [context.format(chr(blame.start)) for blame in batch]
    for start in range(0, len(runs), BATCH_TEXTS // RUN):
        batch = runs[start : start + BATCH_TEXTS // RUN]
        yield batch, ["!{0}a{0}1".format("".join(map(chr, blame))) for blame in batch]
    if normalized:
        pairs = [(code, parts) for code in range(sys.maxunicode + 1) if len(parts := _decomposition(code)) > 1]
        yield [range(parts[-1], parts[-1] + 1) for _, parts in pairs], ["".join(map(chr, parts)) for _, parts in pairs]


def _decomposition(code: int) -> list[int]:
    """What the code point is canonically made of."""
    parts = unicodedata.decomposition(chr(code))
    return [] if parts.startswith("<") else [int(part, 16) for part in parts.split()]
