"""Merges by gigabpe: those of `tokenizers`' own trainer, in a tenth of its time.

It reads files by the line, as `tokenizers` reads files, while here a text is one piece whatever newlines it holds. So
texts are written one to a line, with their newlines written as another blank that no text uses: the GPT-2 regex treats
all blanks but the space alike. What is learned is the same up to the name of that byte, which is put back.
"""

import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.encode import EngineError
from preprocess.engines import as_engine_error, byte_letters, import_optional
from preprocess.parity import RUN, RUNS, odd_texts
from shared.errors import StorageError, UserError
from shared.files import open_empty

NAME = "gigabpe"
BLANKS = b"\n\x0b\x0c\r"  # in the order in which ties between their merges are broken
NEXT_LINE = b"\x0bx\n"  # three pieces of a byte each, in which there is nothing to merge, after any text
Merges = list[tuple[str, str]]


def learn(texts: Iterable[Any], max_entries: int, min_frequency: int) -> Merges:
    """The merges of GPT-2's pieces of `texts`, enough for `max_entries` entries if the texts have so many.

    `texts` are large_string arrays without nulls; they are read more than once.

    Raises: EngineError if gigabpe is not there or cannot do it; UserError if there is no room for a copy of the texts.
    """
    gigabpe = import_optional(NAME)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "texts"
        try:
            written_as = _write(path, texts)
        except StorageError as error:
            raise UserError(f"the sample is too large: {error}; or name a TMPDIR with room") from None
        with as_engine_error(NAME):
            _, merges = gigabpe.train_bpe(
                [str(path)],
                vocab_size=max_entries,
                min_frequency=min_frequency,
                pretokenizer="bytelevel",
            )
    letters = byte_letters()
    put_back = str.maketrans({letters[new]: letters[old] for old, new in written_as.items()})
    return [(one.translate(put_back), two.translate(put_back)) for one, two in merges]


def label() -> str:
    """Name and version.

    Raises: EngineError if it is not installed.
    """
    import_optional(NAME)
    return f"{NAME} {metadata.version(NAME)}"


def probe_texts() -> list[str]:
    """Texts from which other merges are learned if one code point is of another kind: letter, digit, blank or other.

    Each piece is there twice, which is as often as is needed to merge it whole. Blocks whose code points have always
    been alike are looked at every few code points.
    """
    together = {code for block in RUNS for code in block} | {*range(0xD800, 0xE000)}  # and no surrogates
    ends = [code for block in RUNS for run in block[::RUN] for code in (run, run + RUN - 1)]
    codes = [code for code in range(sys.maxunicode + 1) if code not in together] + ends
    texts = [f"x{chr(code)}1 !{chr(code)}" for code in codes] + odd_texts()
    return [text for text in texts if "\x0b" not in text] * 2


def _write(path: Path, texts: Iterable[Any]) -> dict[int, int]:
    """Write each text as one line; which byte stands for which blank in it.

    Raises: EngineError if there is no blank left to stand for a newline.
    """
    used = {BLANKS[0]}
    while True:
        if len(used) == len(BLANKS):
            raise EngineError(f"{NAME} reads lines, and the text has every blank that could stand for a newline")
        written_as = dict(zip(sorted(used), BLANKS[-len(used) :], strict=True))
        found = _write_lines(path, texts, written_as)
        if found <= used:
            return written_as
        used |= found


def _write_lines(path: Path, texts: Iterable[Any], written_as: dict[int, int]) -> set[int]:
    """Write the lines; the blanks that are in the texts."""
    table = bytes(written_as.get(byte, byte) for byte in range(256))
    found: set[int] = set()
    with open_empty(path) as file:
        for batch in texts:
            if not len(batch):
                continue
            bounds = np.frombuffer(batch.buffers()[1], np.int64)[batch.offset : batch.offset + len(batch) + 1]
            data = bytes(batch.buffers()[2][int(bounds[0]) : int(bounds[-1])])
            found |= {blank for blank in BLANKS if blank in data}
            lines, starts = data.translate(table), (bounds - bounds[0]).tolist()
            for start, stop in pairwise(starts):
                file.write(lines[start:stop])
                file.write(NEXT_LINE)
    return found
