"""The dataset format, on one page, and the only code that knows it.

    <tokens>/index.json           the commit: written last. No index, no dataset.
    <tokens>/tokenizer.json       the exact bytes that made every token here
    <tokens>/00000.npy            the shard's token ids: 1-D, uint16 or uint32, little-endian, a standard .npy
    <tokens>/00000.documents.npy  uint64: where each input row starts, num_rows + 1 offsets (a skipped row has length 0)
    <tokens>/00000.json           the shard's receipt, written after its arrays; what a resumed build trusts
    <tokens>/validation/          a dataset of its own of the texts kept apart for validation, if any are

Every document is followed by the end-of-document id; documents stand end to end; nothing is dropped. With a chunk
length of L, chunk i of a shard is the L + 1 ids from i*L to (i+1)*L inclusive: neighbours share one id, and every id
but a shard's first is a target exactly once. The file holds num_chunks*L + 1 ids; the ids that pad it are
end-of-document ids, are counted in the index and are never targets. A shard is one plain stream, so a reader may ask
for any other chunk length: the arithmetic is the same, and it pads in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.arrays import StoredArray, open_array
from shared.columns import from_columns, to_columns
from shared.config import structure, unstructure
from shared.directories import exists, is_directory
from shared.errors import ConfigError, FormatError
from shared.records import GoldenVector, Selection, Shard, SkippedSource, Source, TokenizerIdentity
from shared.storage import SEAL, read_sealed, write_large_sealed
from shared.terminal import safe_text
from shared.urls import not_here, remote_url

__all__ = ["GoldenVector", "Selection", "Shard", "SkippedSource", "Source", "TokenizerIdentity"]  # of `Index`

FORMAT = "argonne-tokens"
VERSION = 2
VERSIONS = (1, 2)  # 1 has a list of records where 2 has tables of columns
INDEX_NAME = "index.json"
TOKENIZER_NAME = "tokenizer.json"
VALIDATION_NAME = "validation"
TOKEN_DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
OFFSET_DTYPE: np.dtype = np.dtype("<u8")


@dataclass(frozen=True)
class Index:
    """The whole of a dataset but its arrays. `fingerprint` is the hash over all the rest: the dataset's name.

    `skipped` are input files that could not be read. One whose footer could is in `sources` too, its shards empty.
    """

    format: str
    version: int
    chunk_length: int
    dtype: str
    text_column: str
    shard_bytes: int
    tokenizer: TokenizerIdentity
    sources: Sequence[Source]
    shards: Sequence[Shard]
    selection: Selection = field(default_factory=Selection)
    skipped: list[SkippedSource] = field(default_factory=list)
    fingerprint: str = field(default="", compare=False)

    @property
    def num_tokens(self) -> int:
        """Ids that are tokens of documents or end-of-document ids; padding is not counted."""
        return sum(self.shard_tokens())

    def shard_tokens(self) -> list[int]:
        """Tokens of each shard, in order."""
        return self.column("num_tokens")

    def column(self, name: str) -> list[int]:
        """One count of each shard, in order."""
        return to_columns(Shard, self.shards)[name]


def token_dtype(vocab_size: int) -> str:
    """Name of the narrowest dtype that holds every id below `vocab_size`.

    >>> token_dtype(50257), token_dtype(65536), token_dtype(65537)
    ('uint16', 'uint16', 'uint32')
    """
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def num_chunks(num_tokens: int, length: int) -> int:
    """Chunks of `length` targets that hold every token but the first as a target.

    >>> [num_chunks(n, 4) for n in (0, 1, 2, 5, 6)]
    [0, 0, 1, 1, 2]
    """
    return -(-max(num_tokens - 1, 0) // length)


def chunks_of(num_tokens: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """`num_chunks` of many shards at once."""
    return -(-np.maximum(num_tokens - 1, 0) // length)


def num_targets(num_tokens: int, length: int, offset: int) -> int:
    """Targets in chunk `offset` of a shard: `length`, or fewer in its last chunk.

    >>> num_targets(6, 4, 0), num_targets(6, 4, 1)
    (4, 1)
    """
    return min(length, num_tokens - 1 - offset * length)


def stored_size(num_tokens: int, length: int) -> int:
    """Ids in a shard's file, padding included.

    >>> stored_size(0, 4), stored_size(6, 4)
    (1, 9)
    """
    return num_chunks(num_tokens, length) * length + 1


def tokens_path(directory: Path, shard: int) -> Path:
    """Where the token ids of shard number `shard` are. Names are made from numbers, never read from a file."""
    return directory / f"{shard:05d}.npy"


def documents_path(directory: Path, shard: int) -> Path:
    """Where the document offsets of shard number `shard` are."""
    return directory / f"{shard:05d}.documents.npy"


def receipt_path(directory: Path, shard: int) -> Path:
    """Where the receipt of shard number `shard` is."""
    return directory / f"{shard:05d}.json"


def write_index(directory: Path, index: Index) -> str:
    """Commit the dataset: write its index, durable and whole or absent; return the fingerprint."""
    document = unstructure(replace(index, sources=[], shards=[]))
    del document[SEAL]
    document |= {"sources": to_columns(Source, index.sources), "shards": to_columns(Shard, index.shards)}
    return write_large_sealed(directory / INDEX_NAME, document)


def read_index(directory: Path) -> Index:
    """The index of the dataset in `directory`.

    Raises: FormatError if there is none, the build has not finished, it is damaged, or it is of another version.
    """
    path = directory / INDEX_NAME
    if not exists(path):
        raise FormatError(_no_index(directory))
    document = read_sealed(path)
    version = document.get("version")
    if document.get("format") != FORMAT or type(version) is not int or version not in VERSIONS:
        found = f"{document.get('format')} version {version}"
        raise FormatError(f"{path} is {found}; {FORMAT} version {VERSION} is wanted: tokenize again with this release")
    try:
        return _index(document, str(path))
    except ConfigError as error:
        raise FormatError(f"{error}: the index was not written by this release; tokenize again") from None


def _index(document: dict[str, Any], path: str) -> Index:
    """The index of either version, as of the newest; its fingerprint is the one it has.

    Raises: ConfigError if it is not one.
    """
    if document["version"] == 1:
        index = replace(structure(document, Index, path), version=VERSION)
    else:
        index = structure({**document, "sources": [], "shards": []}, Index, path)
        index = replace(
            index,
            sources=from_columns(Source, document.get("sources"), f"{path}: sources"),
            shards=from_columns(Shard, document.get("shards"), f"{path}: shards"),
        )
    _check_paths([*to_columns(Source, index.sources)["path"], *(source.path for source in index.skipped)], path)
    return index


def _check_paths(paths: Sequence[str], where: str) -> None:
    """Nothing, if all paths of input files stay within the directory that they are relative to.

    Raises: ConfigError if one does not.
    """
    for path in paths:
        if not path or path.startswith("/") or "\0" in path or (".." in path and ".." in PurePosixPath(path).parts):
            raise ConfigError(f"{where}: sources: {safe_text(repr(path))} is no path within a directory")


def _no_index(directory: Path) -> str:
    if (url := remote_url(directory)) is not None:
        return not_here(url)
    remedy = f"make one with `make tokenize DATA=... TOKENS={directory}`"
    if not is_directory(directory):
        return f"{directory} not found: a token dataset is wanted; {remedy}"
    if exists(directory / TOKENIZER_NAME):
        return (
            f"{directory} is still being built (no {INDEX_NAME}): wait for `make tokenize`, or run it again to resume"
        )
    return f"{directory} is not a token dataset (no {INDEX_NAME}): {remedy}"


def stored_tokens(directory: Path, index: Index, shard: int) -> StoredArray:
    """The file of the ids of shard number `shard`, stored_size ids long."""
    size = stored_size(index.shards[shard].num_tokens, index.chunk_length)
    return StoredArray(tokens_path(directory, shard), TOKEN_DTYPES[index.dtype], size)


def stored_documents(directory: Path, index: Index, shard: int) -> StoredArray:
    """The file of the num_rows + 1 offsets at which the rows of shard number `shard` start."""
    return StoredArray(documents_path(directory, shard), OFFSET_DTYPE, index.shards[shard].num_rows + 1)


def open_tokens(directory: Path, index: Index, shard: int) -> npt.NDArray[np.unsignedinteger]:
    """Read-only map of `stored_tokens`.

    Raises: FormatError if the file is not exactly what the index says.
    """
    return open_array(*stored_tokens(directory, index, shard))


def open_documents(directory: Path, index: Index, shard: int) -> npt.NDArray[np.uint64]:
    """Read-only map of `stored_documents`.

    Raises: FormatError if the file is not exactly what the index says.
    """
    return open_array(*stored_documents(directory, index, shard))
