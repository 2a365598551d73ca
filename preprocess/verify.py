"""Whether a dataset is still what was written: every file against its checksum and against the index."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from preprocess.tokenizer import golden_vectors, load_tokenizer
from shared.errors import FormatError, InputError
from shared.format import (
    TOKENIZER_NAME,
    Index,
    documents_path,
    open_documents,
    open_tokens,
    read_index,
    receipt_path,
    tokens_path,
)
from shared.storage import read_sealed, sha256_file
from shared.terminal import safe_text

BLOCK = 1 << 24  # ids looked at in one go


def verify(directory: Path) -> None:
    """Read all of the dataset in `directory`; print one line for each damaged file and one for the whole.

    Raises: FormatError if anything is damaged.
    """
    started_s = time.monotonic()
    index = read_index(directory)
    problems = []
    for problem in _problems(directory, index):
        print(safe_text(problem), flush=True)
        problems.append(problem)
    shards = range(len(index.shards))
    files = [place(directory, shard) for shard in shards for place in (tokens_path, documents_path)]
    size_bytes = sum(file.stat().st_size for file in files if file.exists())
    seconds = time.monotonic() - started_s
    name = safe_text(str(directory))
    print(
        f"{name}: read {len(files)} files of {len(shards)} shards, the tokenizer and the index: {size_bytes / 1e9:.3f} "
        f"GB in {seconds:.1f} s ({size_bytes / 1e9 / max(seconds, 1e-9):.2f} GB/s)"
    )
    if problems:
        raise FormatError(f"{name} is damaged ({len(problems)} problems, listed above): mend it before training on it")
    print(f"{name} is whole: fingerprint {index.fingerprint}")


def _problems(directory: Path, index: Index) -> Iterator[str]:
    yield from _tokenizer_problems(directory, index)
    for shard in range(len(index.shards)):
        for check in (_token_problems, _document_problems, _receipt_problems):
            try:
                yield from check(directory, index, shard)
            except FormatError as error:
                yield str(error)


def _tokenizer_problems(directory: Path, index: Index) -> Iterator[str]:
    path, identity = directory / TOKENIZER_NAME, index.tokenizer
    if not path.exists():
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


def _token_problems(directory: Path, index: Index, shard: int) -> Iterator[str]:
    tokens, path = open_tokens(directory, index, shard), tokens_path(directory, shard)
    if sha256_file(path) != index.shards[shard].tokens_sha256:
        yield f"{path} does not match its checksum: {_remedy(shard)}"
    highest = max(int(tokens[start : start + BLOCK].max()) for start in range(0, len(tokens), BLOCK))
    if highest >= index.tokenizer.vocab_size:
        yield f"{path} holds id {highest:,}; ids below {index.tokenizer.vocab_size:,} are wanted: {_remedy(shard)}"


def _document_problems(directory: Path, index: Index, shard: int) -> Iterator[str]:
    offsets, path = open_documents(directory, index, shard), documents_path(directory, shard)
    if sha256_file(path) != index.shards[shard].documents_sha256:
        yield f"{path} does not match its checksum: {_remedy(shard)}"
    found = (int(offsets[0]), int(offsets[-1]), bool((np.diff(offsets.astype(np.int64)) >= 0).all()))
    if found != (0, index.shards[shard].num_tokens, True):
        wanted = f"offsets that rise from 0 to {index.shards[shard].num_tokens:,} are wanted"
        yield f"{path} runs from {found[0]:,} to {found[1]:,}; {wanted}: {_remedy(shard)}"


def _receipt_problems(directory: Path, index: Index, shard: int) -> Iterator[str]:
    path = receipt_path(directory, shard)
    if not path.exists():
        yield f"{path} is missing: {_remedy(shard)}"
    elif read_sealed(path)["tokens_sha256"] != index.shards[shard].tokens_sha256:
        yield f"{path} is of other tokens than the index: {_remedy(shard)}"


def _remedy(shard: int) -> str:
    return f"delete {shard:05d}.* there and run `make tokenize` again: only that shard is rebuilt"
