"""What a dataset should hold, worked out the slow and plain way from its inputs: none of the product's code is used."""

from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tests.helpers import read_column

END = "<|endoftext|>"


def problems_of(tokens: Path, data: Path, tokenizer: Path, length: int) -> list[str]:
    """What is wrong with a dataset without duplicates, of chunks of `length`, and with its packing of that length."""
    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.encode_special_tokens = True
    wanted = [_ids(encoder, text) for text in _distinct(data)]
    problems, row = [], 0
    for path in sorted(path for path in tokens.glob("*.npy") if path.stem.isdigit()):
        offsets = np.load(path.with_suffix(".documents.npy")).tolist()
        stream = list(chain.from_iterable(wanted[row : row + len(offsets) - 1]))
        row += len(offsets) - 1
        padded = -(-max(len(stream) - 1, 0) // length) * length + 1
        whole = stream + [encoder.token_to_id(END)] * (padded - len(stream))
        sizes = [len(ids) for ids in wanted[row - len(offsets) + 1 : row]]
        if np.load(path).tolist() != whole or np.diff(offsets).tolist() != sizes:
            problems.append(f"{path.name} does not hold the documents of its rows, each once and in order")
        packed = tokens / "packings" / f"best-fit-{length}"
        if sorted(_packed_targets(packed / path.name, length)) != _targets(sizes):
            problems.append(f"the packing of {path.name} does not hold every target once")
    return problems if row == len(wanted) else [*problems, f"{row} rows are there, {len(wanted)} are wanted"]


def _distinct(data: Path) -> list[str | None]:
    """The texts of all files in their order, with null for one that was there before."""
    seen: set[str] = set()
    texts: list[str | None] = []
    for path in sorted(data.iterdir(), key=lambda path: int(path.stem)):
        for text in read_column(path):
            texts.append(None if text in seen else text)
            seen.add(text or "")
    return texts


def _ids(encoder: Tokenizer, text: str | None) -> list[int]:
    return [*encoder.encode(text, add_special_tokens=False).ids, encoder.token_to_id(END)] if text else []


def _targets(sizes: list[int]) -> list[int]:
    """Places in a shard's stream of the ids that are predicted from one before them in the same document."""
    starts = np.cumsum([0, *sizes]).tolist()
    return [place for start, size in zip(starts, sizes, strict=False) for place in range(start + 1, start + size)]


def _packed_targets(path: Path, length: int) -> list[int]:
    """The same as the packing has them, in any order; a target outside the chunk's length is -1."""
    pieces = np.load(path.with_suffix(".pieces.npy")).tolist()
    targets = []
    for first, num_pieces, num_targets in np.load(path.with_suffix(".chunks.npy")).tolist():
        inside = pieces[first : first + num_pieces]
        ends = [place for _, place in inside[1:]] + [num_targets if num_targets <= length else -1]
        for (start, place), end in zip(inside, ends, strict=True):
            targets += range(start + 1, start + 1 + end - place) if end >= 0 else [-1]
    return targets
