"""Pure: input footers and settings -> the fixed list of shards that a build writes.

The plan knows nothing of workers, machines or crashes, so the same input gives the same shards wherever they are made.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from preprocess.config import BuildSettings
from preprocess.sources import Footer
from shared.config import unstructure
from shared.format import (
    OFFSET_DTYPE,
    TOKEN_DTYPES,
    Index,
    Selection,
    SkippedSource,
    Source,
    TokenizerIdentity,
    token_dtype,
)
from shared.storage import seal

Settings = dict[str, str | int]
BYTES_PER_TOKEN = 2  # of text: English has more than 4, and a tokenizer that knows nothing of a script has 1
RECEIPT_BYTES = 8192


@dataclass(frozen=True)
class PlannedShard:
    """A range of row groups of one source; rows count within that source, `text_bytes` is an estimate."""

    number: int
    source: int
    first_row_group: int
    num_row_groups: int
    first_row: int
    num_rows: int
    text_bytes: int


@dataclass(frozen=True)
class Plan:
    """All that decides a dataset's bytes. `settings` says it in words, `identity` is the hash of that.

    `skipped` are the inputs without a footer that can be read: they have no place in the plan.
    """

    build: BuildSettings
    tokenizer: TokenizerIdentity
    sources: tuple[Source, ...]
    shards: tuple[PlannedShard, ...]
    skipped: tuple[SkippedSource, ...] = ()

    @cached_property
    def settings(self) -> Settings:
        """What two builds must share to be one dataset."""
        return describe(
            self.build.chunk_length,
            self.build.text_column,
            self.build.shard_bytes,
            self.build.selection,
            self.tokenizer,
            self.sources,
            self.skipped,
        )

    @cached_property
    def identity(self) -> str:
        """The name under which receipts remember this plan."""
        return seal(self.settings)


def make_plan(
    footers: Sequence[Footer],
    build: BuildSettings,
    tokenizer: TokenizerIdentity,
    skipped: Sequence[SkippedSource] = (),
) -> Plan:
    """The plan for these inputs, in the order given."""
    sources = tuple(Source(footer.path, footer.size_bytes, footer.num_rows, footer.identity) for footer in footers)
    return Plan(build, tokenizer, sources, tuple(plan_shards(footers, build.shard_bytes)), tuple(skipped))


def plan_shards(footers: Sequence[Footer], shard_bytes: int) -> list[PlannedShard]:
    """Shards of consecutive row groups of one file, each closed as soon as it has `shard_bytes`; none without rows.

    >>> from preprocess.sources import RowGroup
    >>> footer = Footer("a.parquet", 99, 30, "", (RowGroup(10, 50), RowGroup(10, 60), RowGroup(10, 70)))
    >>> [(shard.first_row_group, shard.num_row_groups, shard.first_row) for shard in plan_shards([footer], 100)]
    [(0, 2, 0), (2, 1, 20)]
    """
    shards: list[PlannedShard] = []
    for source, footer in enumerate(footers):
        first_row = 0
        for groups in _ranges([group.text_bytes for group in footer.row_groups], shard_bytes):
            inside = footer.row_groups[groups.start : groups.stop]
            rows, size = sum(group.num_rows for group in inside), sum(group.text_bytes for group in inside)
            if rows:
                shards.append(PlannedShard(len(shards), source, groups.start, len(groups), first_row, rows, size))
            first_row += rows
    return shards


def _ranges(sizes: Sequence[int], wanted: int) -> list[range]:
    """Consecutive ranges over `sizes`, each the shortest that sums to `wanted`; the last takes what is left.

    >>> _ranges([5, 5, 20, 1], 10)
    [range(0, 2), range(2, 3), range(3, 4)]
    """
    ranges, start, total = [], 0, 0
    for number, size in enumerate(sizes):
        total += size
        if total >= wanted or number == len(sizes) - 1:
            ranges.append(range(start, number + 1))
            start, total = number + 1, 0
    return ranges


def needed_bytes(shards: Sequence[PlannedShard], chunk_length: int, vocab_size: int) -> int:
    """Disk that writing `shards` takes at most, unless their text is unusual for the tokenizer or much of it repeats.

    For each shard: an id for every `BYTES_PER_TOKEN` bytes of text and for the end of every row, a whole chunk of
    padding, an offset for every row, and a receipt. The hard limit, an id for every byte, would refuse many builds
    that fit twice over; a build that this estimate lets through and the disk does not, stops cleanly and resumes.

    >>> needed_bytes([PlannedShard(0, 0, 0, 1, 0, 10, 1000)], 64, 50257) - RECEIPT_BYTES
    1236
    """
    id_bytes, offset_bytes = TOKEN_DTYPES[token_dtype(vocab_size)].itemsize, OFFSET_DTYPE.itemsize
    return sum(
        (shard.text_bytes // BYTES_PER_TOKEN + shard.num_rows + chunk_length) * id_bytes
        + (shard.num_rows + 1) * offset_bytes
        + RECEIPT_BYTES
        for shard in shards
    )


def describe(
    chunk_length: int,
    text_column: str,
    shard_bytes: int,
    selection: Selection,
    tokenizer: TokenizerIdentity,
    sources: Sequence[Source],
    skipped: Sequence[SkippedSource],
) -> Settings:
    """The settings of a build in words and numbers that can be stored, compared and shown."""
    rows = sum(source.num_rows for source in sources)
    left_out = {"skipped": [unstructure(source) for source in skipped]} if skipped else {}
    inputs = seal({"sources": [unstructure(source) for source in sources], **left_out})
    return {
        "chunk length": chunk_length,
        "text column": text_column,
        "shard bytes": shard_bytes,
        "where": selection.where or "any row",
        "duplicates": "dropped" if selection.drop_duplicates else "kept",
        "split": f"{selection.split}, {selection.validation_share:g} is validation"
        if selection.validation_share
        else "none",
        "tokenizer": tokenizer.sha256,
        "end-of-document id": tokenizer.end_of_document_id,
        "inputs": f"{len(sources)} files with {rows:,} rows{' without the skipped' if skipped else ''}, {inputs}",
    }


def index_settings(index: Index) -> Settings:
    """The settings of the build that made a finished dataset."""
    planned = {source.path for source in index.sources}
    skipped = [source for source in index.skipped if source.path not in planned]
    return describe(
        index.chunk_length,
        index.text_column,
        index.shard_bytes,
        index.selection,
        index.tokenizer,
        index.sources,
        skipped,
    )


def differences(found: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    """One phrase for each setting that is not as wanted, hashes shortened.

    >>> differences({"chunk length": 64, "text column": "text"}, {"chunk length": 17, "text column": "text"})
    ['chunk length: found 64, wanted 17']
    """
    names = [name for name in wanted if found.get(name) != wanted[name]]
    return [f"{name}: found {_short(found.get(name))}, wanted {_short(wanted[name])}" for name in names]


def _short(value: object) -> str:
    return re.sub("([0-9a-f]{12})[0-9a-f]{52}", r"sha256 \1", str(value))
