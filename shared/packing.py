"""A packing, on one page: another way to cut a dataset's tokens into chunks, and the only code that knows its files.

    <tokens>/packings/<method>-<length>/index.json        the commit: written last. No index, no packing
    <tokens>/packings/<method>-<length>/00000.chunks.npy  a shard's chunks: first piece, number of pieces and of targets
    <tokens>/packings/<method>-<length>/00000.pieces.npy  their pieces: start in the shard's tokens, place in the chunk
    <tokens>/packings/<method>-<length>/00000.json        the shard's receipt, written after its arrays

A target is an id that is predicted from the one before it in the same document: a document of n ids has n - 1. A chunk
holds up to `length` targets as pieces, which are parts of documents. A piece at `place` with `size` targets from
`start` on has the inputs tokens[start : start + size], which stand at place to place + size in the chunk, and the
targets tokens[start + 1 : start + size + 1]. Pieces of a chunk stand end to end in the order of their starts, so a size
is the next piece's place, or the chunk's targets, less its own place; what is left of a chunk is padding.

Methods: with "best-fit" every target of every document is in exactly one chunk, and only documents of more than
`length` targets are cut; with "whole" those are left out instead.
"""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.arrays import StoredArray, open_array
from shared.config import structure, unstructure
from shared.directories import exists, is_directory, listing
from shared.errors import ConfigError, FormatError
from shared.format import INDEX_NAME, Index
from shared.storage import SEAL, read_sealed, write_sealed
from shared.terminal import safe_text

FORMAT = "argonne-packing"
VERSION = 1
PACKINGS_NAME = "packings"
METHODS = ("best-fit", "whole")
MAX_LENGTH = (1 << 31) - 1  # places are read as int32
CHUNK_DTYPE: np.dtype = np.dtype([("first_piece", "<u8"), ("num_pieces", "<u4"), ("num_targets", "<u4")])
PIECE_DTYPE: np.dtype = np.dtype([("start", "<u8"), ("place", "<u4")])
DIRECTORY_NAME = re.compile(rf"({'|'.join(METHODS)})-([1-9][0-9]{{0,9}})")


@dataclass(frozen=True)
class PackedShard:
    """What the packing of one shard holds; documents and tokens that are left out are counted with their end."""

    num_chunks: int
    num_pieces: int
    num_targets: int
    num_padding: int
    num_left_out: int
    tokens_left_out: int
    chunks_sha256: str
    pieces_sha256: str


@dataclass(frozen=True)
class Packing:
    """The whole of a packing but its arrays. `dataset` is the fingerprint of that which it cuts, the other its own."""

    format: str
    version: int
    method: str
    length: int
    dataset: str
    shards: list[PackedShard]
    fingerprint: str = field(default="", compare=False)

    def total(self, name: str) -> int:
        """The sum of one count over all shards."""
        return sum(getattr(shard, name) for shard in self.shards)


@dataclass(frozen=True)
class PackingName:
    """Which packing of the dataset in `tokens` is meant.

    >>> name = PackingName(Path("tokens"), "best-fit", 2048)
    >>> str(name.directory), name.command
    ('tokens/packings/best-fit-2048', 'python -m preprocess pack tokens --length 2048 --method best-fit')
    """

    tokens: Path
    method: str
    length: int

    @property
    def directory(self) -> Path:
        """Where its files are."""
        return self.tokens / PACKINGS_NAME / f"{self.method}-{self.length}"

    @property
    def is_finished(self) -> bool:
        """Whether it has an index, without which it is none."""
        return exists(self.directory / INDEX_NAME)

    @property
    def command(self) -> str:
        """What makes it."""
        return (
            f"python -m preprocess pack {shlex.quote(str(self.tokens))} --length {self.length} --method {self.method}"
        )


def packing_names(tokens: Path) -> list[PackingName]:
    """The packings in the dataset in `tokens`, finished or not, by method and length."""
    directory = tokens / PACKINGS_NAME
    found = [DIRECTORY_NAME.fullmatch(path.name) for path in listing(directory)]
    names = sorted((match[1], int(match[2])) for match in found if match)
    return [PackingName(tokens, method, length) for method, length in names]


def chunks_path(directory: Path, shard: int) -> Path:
    """Where the chunks of shard number `shard` are."""
    return directory / f"{shard:05d}.chunks.npy"


def pieces_path(directory: Path, shard: int) -> Path:
    """Where the pieces of shard number `shard` are."""
    return directory / f"{shard:05d}.pieces.npy"


def write_packing(name: PackingName, packing: Packing) -> str:
    """Commit the packing: write its index, durable and whole or absent; return its fingerprint."""
    document = unstructure(packing)
    del document[SEAL]
    return write_sealed(name.directory / INDEX_NAME, document)


def read_packing(name: PackingName, index: Index) -> Packing:
    """The packing of that name of the dataset of `index`.

    Raises: FormatError if there is none, it is not finished or damaged, or it is of another dataset, name or version.
    """
    path = name.directory / INDEX_NAME
    if not name.is_finished:
        raise FormatError(_no_packing(name))
    document = read_sealed(path)
    if (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        found = f"{document.get('format')} version {document.get('version')}"
        raise FormatError(f"{path} is {found}; {FORMAT} version {VERSION} is wanted: {_again(name)}")
    try:
        packing = structure(document, Packing, str(path))
    except ConfigError as error:
        raise FormatError(f"{error}: the packing was not written by this release: {_again(name)}") from None
    if (packing.method, packing.length) != (name.method, name.length):
        raise FormatError(f"{path} is {safe_text(packing.method)} of length {packing.length}: {_again(name)}")
    if packing.dataset != index.fingerprint:
        found, wanted = packing.dataset[:12], index.fingerprint[:12]
        raise FormatError(f"{path} is of dataset {safe_text(found)}, the one there is {wanted}: {_again(name)}")
    return packing


def stored_chunks(name: PackingName, packing: Packing, shard: int) -> StoredArray:
    """The file of the chunks of shard number `shard`, CHUNK_DTYPE."""
    return StoredArray(chunks_path(name.directory, shard), CHUNK_DTYPE, packing.shards[shard].num_chunks, name.command)


def stored_pieces(name: PackingName, packing: Packing, shard: int) -> StoredArray:
    """The file of the pieces of shard number `shard`, PIECE_DTYPE."""
    return StoredArray(pieces_path(name.directory, shard), PIECE_DTYPE, packing.shards[shard].num_pieces, name.command)


def open_chunks(name: PackingName, packing: Packing, shard: int) -> npt.NDArray:
    """Read-only map of `stored_chunks`.

    Raises: FormatError if the file is not exactly what the packing's index says.
    """
    return open_array(*stored_chunks(name, packing, shard))


def open_pieces(name: PackingName, packing: Packing, shard: int) -> npt.NDArray:
    """Read-only map of `stored_pieces`.

    Raises: FormatError if the file is not exactly what the packing's index says.
    """
    return open_array(*stored_pieces(name, packing, shard))


def _no_packing(name: PackingName) -> str:
    if is_directory(name.directory):
        return (
            f"{name.directory} is still being made (no {INDEX_NAME}): wait for `{name.command}`, or run it again to "
            "continue"
        )
    others = ", ".join(other.directory.name for other in packing_names(name.tokens)) or "none"
    return f"{name.tokens} has no packing {name.directory.name} (found: {others}): make it with `{name.command}`"


def _again(name: PackingName) -> str:
    return f"run `{name.command}` again"
