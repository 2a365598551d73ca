"""`--drop-duplicates`: of texts that are equal byte for byte, the first one in reading order is kept.

Which rows repeat an earlier one is found before anything is encoded. Every shard's texts are hashed on the workers,
into a file for each shard, so that a killed build hashes no shard twice; the hashes are then sorted, a part of them at
a time, and the rows that repeat are kept beside the dataset: a function of the inputs and the condition alone.

    <tokens>/00000.digests.npy    uint64: two for each row of the shard, 0 0 for a row that is no candidate; of a shard
                                  that cannot be read all bits are set. Deleted when the list is there
    <tokens>/duplicates.npy       uint64: numbers of the rows that repeat others, counted over all inputs, rising
    <tokens>/duplicates.json      what they were found in, and their checksum; written last
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocess.batches import text_sizes
from preprocess.digests import text_digests
from preprocess.job import Report, Say, silent
from preprocess.parts import LIST_NAMES
from preprocess.plan import Plan
from preprocess.select import Fate, Selector
from preprocess.sources import BadFileError, read_rows
from preprocess.writer import check_unchanged, npy
from shared.arrays import check_array, open_array
from shared.directories import exists, remove_file
from shared.errors import FormatError
from shared.format import OFFSET_DTYPE
from shared.storage import read_sealed, sha256_file, write_file, write_sealed

LIST_NAME, SEAL_NAME = LIST_NAMES
MAX_SORTED_BYTES = 1 << 30
UNREADABLE = np.uint64(2**64 - 1)  # all of the digests of a shard that cannot be read
Rows = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class DigestJob:
    """Hashes the texts of any shard of `plan`; crosses to a worker as `job.Job` does."""

    directory: Path
    root: Path
    plan: Plan

    def absolute(self) -> "DigestJob":
        """See job.Work."""
        return replace(self, directory=self.directory.absolute(), root=self.root.absolute())

    def open(self, num_threads: int | None = None, say: Say = silent) -> Any:  # noqa: ARG002 (as for any job)
        """A function that writes the digests of one shard by its number."""
        return self._write

    def _write(self, number: int, report: Report) -> None:
        """Candidates are the rows that would be documents if no text were a duplicate."""
        planned, build = self.plan.shards[number], self.plan.build
        path = self.root / self.plan.sources[planned.source].path
        groups = range(planned.first_row_group, planned.first_row_group + planned.num_row_groups)
        selector, row = Selector(build.selection, whole=True), planned.first_row
        pieces: list[npt.NDArray[np.uint64]] = []
        try:
            for rows in read_rows(path, groups, build.text_column, selector.columns):
                digests = text_digests(rows.texts).copy()
                digests[selector.fates(rows, row) != Fate.DOCUMENT] = 0
                pieces.append(digests.ravel())
                row += len(digests)
                report(int(text_sizes(rows.texts).sum()), 0)
        except BadFileError:
            if build.on_bad_file == "stop":
                raise
            pieces = [np.full(2 * planned.num_rows, UNREADABLE)]
        else:
            check_unchanged(self.root, self.plan, planned, row - planned.first_row)
        write_file(digests_path(self.directory, number), npy(pieces, 2 * planned.num_rows, OFFSET_DTYPE))


def digests_path(directory: Path, shard: int) -> Path:
    """Where the digests of shard number `shard` are."""
    return directory / f"{shard:05d}.digests.npy"


def undigested(directory: Path, plan: Plan) -> list[int]:
    """The shards whose digests are not there yet, or are not whole."""
    return [
        shard.number for shard in plan.shards if not _is_whole(digests_path(directory, shard.number), shard.num_rows)
    ]


def _is_whole(path: Path, num_rows: int) -> bool:
    try:
        check_array(path, OFFSET_DTYPE, 2 * num_rows)
    except FormatError:
        return False
    return True


def join_digests(directory: Path, plan: Plan, max_bytes: int = MAX_SORTED_BYTES) -> int:
    """Find the rows that repeat others from the digests of all shards, keep their numbers, and return how many."""
    starts = source_starts(plan)
    read = [
        (shard, open_array(digests_path(directory, shard.number), OFFSET_DTYPE, 2 * shard.num_rows))
        for shard in plan.shards
    ]
    left_out = {shard.source for shard, digests in read if digests[0] == UNREADABLE}  # whole, as its shards will be
    shards = [
        (starts[shard.source] + shard.first_row, digests) for shard, digests in read if shard.source not in left_out
    ]
    size_bytes = 24 * sum(shard.num_rows for shard in plan.shards)  # a digest and a number
    rows = np.sort(np.concatenate([*_repeats(shards, -(-size_bytes // max_bytes)), np.zeros(0, np.uint64)]))
    sha256 = write_file(directory / LIST_NAME, npy([rows], len(rows), OFFSET_DTYPE))
    write_sealed(directory / SEAL_NAME, {**question(plan), "num_duplicates": len(rows), "sha256": sha256})
    remove_digests(directory, plan)
    return len(rows)


def remove_digests(directory: Path, plan: Plan) -> None:
    """Delete the digests, once the list is there."""
    for shard in plan.shards:
        remove_file(digests_path(directory, shard.number))


def _repeats(shards: Sequence[tuple[int, npt.NDArray[np.uint64]]], num_parts: int) -> Iterator[Rows]:
    """Numbers of the rows that repeat an earlier one, for each of `num_parts` parts of all digests in turn."""
    for part in range(num_parts):
        found_digests, found_rows = [np.zeros((0, 2), np.uint64)], [np.zeros(0, np.uint64)]
        for first, flat in shards:
            digests = flat.reshape(-1, 2)
            inside = np.flatnonzero(digests.any(axis=1) & (digests[:, 0] % np.uint64(num_parts) == part))
            found_digests.append(digests[inside])
            found_rows.append((inside + first).astype(np.uint64))
        digests, rows = np.concatenate(found_digests), np.concatenate(found_rows)
        order = np.lexsort((rows, digests[:, 1], digests[:, 0]))
        same = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
        yield rows[order[1:][same]]


def source_starts(plan: Plan) -> list[int]:
    """How many rows are before each source, and before the end."""
    starts: list[int] = np.cumsum([0, *(source.num_rows for source in plan.sources)]).tolist()
    return starts


def question(plan: Plan) -> dict[str, Any]:
    """What decides which rows are duplicates."""
    return {name: plan.settings[name] for name in ("inputs", "text column", "where")}


def has_list(directory: Path, plan: Plan) -> bool:
    """Whether the duplicates of this plan's inputs have been found already.

    Raises: FormatError if what says so is damaged.
    """
    path = directory / SEAL_NAME
    return exists(path) and question(plan).items() <= read_sealed(path).items()


def open_list(directory: Path) -> Rows:
    """Read-only map of the list in `directory`.

    Raises: FormatError if it is damaged.
    """
    path, seal = directory / LIST_NAME, read_sealed(directory / SEAL_NAME)
    remedy = f"delete it and {SEAL_NAME} there and run `make tokenize` again: it is made anew"
    rows = open_array(path, OFFSET_DTYPE, seal["num_duplicates"])
    if sha256_file(path) != seal["sha256"]:
        raise FormatError(f"{path} does not match its checksum: {remedy}")
    return rows


class Duplicates:
    """The rows that repeat others, as an earlier `join_digests` has found them.

    Raises: FormatError if the list is damaged.
    """

    def __init__(self, directory: Path, plan: Plan) -> None:
        self._rows, self._starts = open_list(directory), source_starts(plan)

    def of(self, source: int) -> Rows:
        """The rows of one source, counted within it, that repeat others."""
        first, stop = self._starts[source : source + 2]
        inside = slice(*np.searchsorted(self._rows, np.array([first, stop], np.uint64)))
        return np.asarray(self._rows[inside]) - np.uint64(first)
