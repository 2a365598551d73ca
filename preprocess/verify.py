"""Whether a dataset is still what was written: every file, its packings' too, against its checksum and its index."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from preprocess.coverage import is_covered
from preprocess.duplicates import SEAL_NAME, open_list
from preprocess.encode import ReferenceEngine
from preprocess.parity import OddTexts
from preprocess.spelling import ByteLengths, byte_lengths, spelled_bytes
from preprocess.tokenizer import golden_vectors, load_tokenizer
from shared.directories import exists, listing
from shared.errors import FormatError, InputError
from shared.files import size_of
from shared.format import (
    TOKENIZER_NAME,
    VALIDATION_NAME,
    Index,
    documents_path,
    open_documents,
    open_tokens,
    read_index,
    receipt_path,
    tokens_path,
)
from shared.packing import (
    Packing,
    PackingName,
    chunks_path,
    open_chunks,
    open_pieces,
    packing_names,
    pieces_path,
    read_packing,
)
from shared.storage import read_sealed, sha256_file
from shared.terminal import safe_text

BLOCK = 1 << 24  # ids looked at in one go


class Problem(NamedTuple):
    """What is wrong with a dataset: with one of its shards, or (None) with something else of it."""

    text: str
    shard: int | None = None


def verify(directory: Path) -> None:
    """Read all of the dataset in `directory`; print one line for each damaged file and one for the whole.

    Raises: FormatError if anything is damaged.
    """
    started_s = time.monotonic()
    index = read_index(directory)
    problems = []
    for problem in chain(find_problems(directory, index), _validation_problems(directory / VALIDATION_NAME)):
        print(safe_text(problem.text), flush=True)
        problems.append(problem)
    files = [path for place in (directory, directory / VALIDATION_NAME) for path in _files(place)]
    size_bytes, seconds = sum(map(size_of, files)), time.monotonic() - started_s
    name = safe_text(str(directory))
    print(
        f"{name}: read {len(files)} files: {size_bytes / 1e9:.3f} GB in {seconds:.1f} s "
        f"({size_bytes / 1e9 / max(seconds, 1e-9):.2f} GB/s)"
    )
    if problems:
        raise FormatError(f"{name} is damaged ({len(problems)} problems, listed above): mend it before training on it")
    print(f"{name} is whole: fingerprint {index.fingerprint}")


def _files(directory: Path) -> list[Path]:
    """The files of a dataset and its packings."""
    places = [directory, *(name.directory for name in packing_names(directory) if name.is_finished)]
    return [path for place in places for path in listing(place) if path.suffix in (".npy", ".json")]


def _validation_problems(directory: Path) -> Iterator[Problem]:
    """What is wrong with the texts kept apart, if any are."""
    if exists(directory):
        try:
            yield from find_problems(directory, read_index(directory))
        except FormatError as error:
            yield Problem(str(error))


def find_problems(directory: Path, index: Index) -> Iterator[Problem]:
    """All that is wrong with the dataset in `directory`, as it is found: everything is read, the packings too."""
    yield from (problems := list(map(Problem, _tokenizer_problems(directory, index))))
    lengths = None if problems else _byte_lengths(directory, index)
    for shard in range(len(index.shards)):
        for check in (partial(_token_problems, lengths), _document_problems, _receipt_problems):
            yield from (Problem(text, shard) for text in _told(check(directory, index, shard)))
    if exists(directory / SEAL_NAME):
        try:
            open_list(directory)
        except FormatError as error:
            yield Problem(str(error))
    for name in packing_names(directory):
        if name.is_finished:
            yield from map(Problem, _packing_problems(name, index))


def _told(problems: Iterable[str]) -> Iterator[str]:
    """The problems, and behind them what kept more from being looked for."""
    try:
        yield from problems
    except FormatError as error:
        yield str(error)


def _tokenizer_problems(directory: Path, index: Index) -> Iterator[str]:
    path, identity = directory / TOKENIZER_NAME, index.tokenizer
    if not exists(path):
        yield f"{path} is missing: run `make tokenize` again with the TOKENIZER that made the dataset"
    elif sha256_file(path) != identity.sha256:
        yield (
            f"{path} does not match its checksum: "
            "run `make tokenize` again with the TOKENIZER that made the dataset, or put its copy back"
        )
    else:
        yield from _golden_problems(path, index)


def _golden_problems(path: Path, index: Index) -> Iterator[str]:
    try:
        tokenizer = load_tokenizer(path, index.tokenizer.end_of_document).tokenizer
    except InputError as error:
        yield str(error)
        return
    golden = index.tokenizer.golden
    if golden_vectors(tokenizer, [vector.text for vector in golden]) != golden:
        yield f"{path} no longer gives the ids it gave: install the release of `tokenizers` that made the dataset"


def _byte_lengths(directory: Path, index: Index) -> ByteLengths | None:
    """Bytes of text behind each id, if ids spell texts out."""
    tokenizer = load_tokenizer(directory / TOKENIZER_NAME, index.tokenizer.end_of_document)
    odd_texts = OddTexts(ReferenceEngine(tokenizer.tokenizer), [])
    return byte_lengths(json.loads(tokenizer.raw), odd_texts.texts, odd_texts.encoded)


def _token_problems(lengths: ByteLengths | None, directory: Path, index: Index, shard: int) -> Iterator[str]:
    tokens, path = open_tokens(directory, index, shard), tokens_path(directory, shard)
    if sha256_file(path) != index.shards[shard].tokens_sha256:
        yield f"{path} does not match its checksum: {_remedy(shard)}"
    blocks = [tokens[start : start + BLOCK] for start in range(0, len(tokens), BLOCK)]
    highest = max(int(block.max()) for block in blocks)
    if highest >= index.tokenizer.vocab_size:
        yield f"{path} holds id {highest:,}; ids below {index.tokenizer.vocab_size:,} are wanted: {_remedy(shard)}"
    elif lengths is not None:
        place = index.shards[shard]
        num_ends = place.num_documents + place.num_padding
        spelled = sum(spelled_bytes(lengths, block) for block in blocks)
        spelled -= num_ends * int(lengths[index.tokenizer.end_of_document_id])
        if spelled != place.text_bytes:
            wanted = f"the index says {place.text_bytes:,}"
            yield f"{path} spells {spelled:,} bytes of text, {wanted}: {_remedy(shard)}"


def _document_problems(directory: Path, index: Index, shard: int) -> Iterator[str]:
    offsets, path = open_documents(directory, index, shard), documents_path(directory, shard)
    if sha256_file(path) != index.shards[shard].documents_sha256:
        yield f"{path} does not match its checksum: {_remedy(shard)}"
    found = (int(offsets[0]), int(offsets[-1]), bool((np.diff(offsets.astype(np.int64)) >= 0).all()))
    if found != (0, index.shards[shard].num_tokens, True):
        wanted = f"offsets that rise from 0 to {index.shards[shard].num_tokens:,} are wanted"
        yield f"{path} runs from {found[0]:,} to {found[1]:,}; {wanted}: {_remedy(shard)}"


def _receipt_problems(directory: Path, index: Index, shard: int) -> Iterator[str]:
    found = index.shards[shard]
    wanted = {"tokens_sha256": found.tokens_sha256, "documents_sha256": found.documents_sha256}
    yield from _receipt_problem(receipt_path(directory, shard), wanted, _remedy(shard))


def _receipt_problem(path: Path, wanted: dict[str, Any], remedy: str) -> Iterator[str]:
    if not exists(path):
        yield f"{path} is missing: {remedy}"
    elif not wanted.items() <= read_sealed(path).items():
        yield f"{path} is of another shard than the index: {remedy}"


def _packing_problems(name: PackingName, index: Index) -> Iterator[str]:
    try:
        packing = read_packing(name, index)
    except FormatError as error:
        yield str(error)
        return
    for shard in range(len(index.shards)):
        yield from _told(_packed_problems(name, packing, index, shard))


def _packed_problems(name: PackingName, packing: Packing, index: Index, shard: int) -> Iterator[str]:
    chunks, pieces = open_chunks(name, packing, shard), open_pieces(name, packing, shard)
    remedy = f"delete {shard:05d}.* there and run `{name.command}` again: only that shard is rebuilt"
    found = packing.shards[shard]
    paths = {
        chunks_path(name.directory, shard): found.chunks_sha256,
        pieces_path(name.directory, shard): found.pieces_sha256,
    }
    damaged = [path for path, checksum in paths.items() if sha256_file(path) != checksum]
    for path in damaged:
        yield f"{path} does not match its checksum: {remedy}"
    longest = packing.length if packing.method == "whole" else None
    yield from _receipt_problem(receipt_path(name.directory, shard), asdict(found), remedy)
    offsets = open_documents(name.tokens, index, shard).astype(np.int64)
    if not damaged and not is_covered(chunks, pieces, offsets, longest):
        yield f"{pieces_path(name.directory, shard)} does not hold every target of its documents once: {remedy}"


def _remedy(shard: int) -> str:
    return f"delete {shard:05d}.* there and run `make tokenize` again: only that shard is rebuilt"
