"""A packing of a finished dataset: every shard that is not there yet, on several processes, and the index last.

A shard is packed from its document offsets alone, so the bytes do not depend on workers, crashes or other shards. Its
receipt names the checksum of those offsets: where a dataset was made again with the same documents, it still holds.
"""

import re
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from preprocess.config import PackSettings
from preprocess.coverage import is_covered
from preprocess.placing import place_documents
from preprocess.processes import become_worker, interrupts_held
from preprocess.progress import Progress
from shared.arrays import check_array, open_array, write_array
from shared.claims import held
from shared.config import structure
from shared.directories import exists, listing, make_directory, remove_file, written_name
from shared.errors import ConfigError, FormatError, UserError
from shared.format import INDEX_NAME, OFFSET_DTYPE, Index, Shard, documents_path, read_index, receipt_path
from shared.locks import exclusive
from shared.packing import (
    CHUNK_DTYPE,
    FORMAT,
    PIECE_DTYPE,
    VERSION,
    PackedShard,
    Packing,
    PackingName,
    chunks_path,
    pieces_path,
    read_packing,
    write_packing,
)
from shared.storage import read_sealed, sha256_file, write_sealed
from shared.terminal import safe_text

SHARD_FILE = re.compile(r"(\d{5,})\.(chunks\.npy|pieces\.npy|json)")


@dataclass(frozen=True)
class Task:
    """One shard to pack, as plain data that crosses to a worker."""

    name: PackingName
    number: int
    shard: Shard

    @property
    def origin(self) -> dict[str, Any]:
        """What decides every byte of it."""
        documents = {"num_rows": self.shard.num_rows, "documents_sha256": self.shard.documents_sha256}
        return {"method": self.name.method, "length": self.name.length, **documents}


def pack(tokens: Path, settings: PackSettings) -> Packing:
    """The finished packing of the dataset in `tokens`: made, continued, made again, or recognised as done.

    Raises: FormatError if there is no finished dataset; StorageError if the packing cannot be written.
    """
    index = read_index(tokens)
    name = PackingName(tokens, settings.method, settings.length)
    make_directory(name.directory)
    with exclusive(name.directory, "pack", steal=settings.steal):
        before = _existing(name, index)
        _tidy(name.directory, len(index.shards))
        tasks = [Task(name, number, shard) for number, shard in enumerate(index.shards)]
        shards = {task.number: shard for task in tasks if (shard := complete_shard(task)) is not None}
        missing = [task for task in tasks if task.number not in shards]
        if shards and missing:
            print(f"{len(shards):,} of {len(tasks):,} shards are already packed: packing the others", flush=True)
        shards |= _carry_out(missing, index, settings.workers)
        in_order = [shards[task.number] for task in tasks]
        packing = Packing(FORMAT, VERSION, name.method, name.length, index.fingerprint, in_order)
        shown = safe_text(str(name.directory))
        if before == packing:
            print(f"{shown} is complete{' again' if missing else ': nothing to do'}")
        else:
            write_packing(name, packing)
        packing = read_packing(name, index)
        print(f"{shown}: {summary(packing)}; fingerprint {packing.fingerprint[:12]}")
        return packing


def pack_shard(task: Task) -> PackedShard:
    """Write the arrays and the receipt of one shard; describe it.

    Raises: FormatError if its document offsets are damaged; StorageError if the disk refuses.
    """
    directory, length = task.name.directory, task.name.length
    offsets, whole = _offsets(task), task.name.method == "whole"
    placed = place_documents(offsets, length, whole=whole)
    assert is_covered(placed.chunks, placed.pieces, offsets, length if whole else None), task
    num_targets = int(placed.chunks["num_targets"].sum(dtype=np.int64))
    shard = PackedShard(
        num_chunks=len(placed.chunks),
        num_pieces=len(placed.pieces),
        num_targets=num_targets,
        num_padding=len(placed.chunks) * length - num_targets,
        num_left_out=len(placed.left_out),
        tokens_left_out=int(placed.left_out.sum()) + len(placed.left_out),
        chunks_sha256=write_array(chunks_path(directory, task.number), placed.chunks),
        pieces_sha256=write_array(pieces_path(directory, task.number), placed.pieces),
    )
    write_sealed(receipt_path(directory, task.number), {**task.origin, **asdict(shard)})
    return shard


def complete_shard(task: Task) -> PackedShard | None:
    """The shard as its receipt describes it, or None if it must be packed; says why what is there cannot be used."""
    path, directory, command = receipt_path(task.name.directory, task.number), task.name.directory, task.name.command
    if not exists(path):
        return None
    try:
        receipt = read_sealed(path)
        if any(receipt.get(name) != value for name, value in task.origin.items()):
            return None
        shard = structure(
            {field.name: receipt.get(field.name) for field in fields(PackedShard)}, PackedShard, str(path)
        )
        check_array(chunks_path(directory, task.number), CHUNK_DTYPE, shard.num_chunks, command)
        check_array(pieces_path(directory, task.number), PIECE_DTYPE, shard.num_pieces, command)
    except (ConfigError, FormatError) as error:
        print(f"packing shard {task.number} again: {safe_text(str(error))}", flush=True)
        return None
    return shard


def summary(packing: Packing) -> str:
    """What a packing holds, in one line."""
    chunks, pieces, padding, left_out = (
        packing.total(name) for name in ("num_chunks", "num_pieces", "num_padding", "num_left_out")
    )
    share = padding / max(chunks * packing.length, 1)
    tokens = packing.total("tokens_left_out")
    left = f"{left_out:,} documents with {tokens:,} tokens" if left_out else "no token"
    return f"{chunks:,} chunks of {packing.length:,}, {pieces:,} pieces, {share:.3%} padding, {left} left out"


def _existing(name: PackingName, index: Index) -> Packing | None:
    """The finished packing that is there; one that cannot be used is no longer one before its arrays change."""
    path = name.directory / INDEX_NAME
    if not exists(path):
        return None
    try:
        return read_packing(name, index)
    except FormatError as error:
        print(f"packing again: {safe_text(str(error))}", flush=True)
    remove_file(path)
    return None


def _tidy(directory: Path, num_shards: int) -> None:
    """Delete what killed processes were writing, and shards that the dataset no longer has."""
    for path in listing(directory):
        found = SHARD_FILE.fullmatch(path.name)
        if written_name(path.name) or (found and int(found[1]) >= num_shards):
            remove_file(path)


def _offsets(task: Task) -> np.ndarray:
    path = documents_path(task.name.tokens, task.number)
    offsets = open_array(path, OFFSET_DTYPE, task.shard.num_rows + 1)
    if sha256_file(path) != task.shard.documents_sha256:
        raise FormatError(
            f"{path} does not match its checksum: delete {task.number:05d}.* there and run `make tokenize` again, "
            "then pack"
        )
    return offsets.astype(np.int64)


def _carry_out(tasks: Sequence[Task], index: Index, workers: int) -> dict[int, PackedShard]:
    """The packed shards by number; a mistake in one ends it as soon as those in work are written."""
    sizes, num_done = [shard.text_bytes for shard in index.shards], len(index.shards) - len(tasks)
    bytes_done = sum(sizes) - sum(task.shard.text_bytes for task in tasks)
    workers = min(workers, len(tasks))
    packed = _on_processes(tasks, workers) if workers > 1 else ((task, pack_shard(task)) for task in tasks)
    shards = {}
    with Progress(len(index.shards), sum(sizes), num_done, bytes_done) as progress, closing(packed):
        for task, shard in packed:
            shards[task.number] = shard
            progress.finish_shard()
            progress.add(task.shard.text_bytes, task.shard.num_tokens)
    return shards


def _on_processes(tasks: Sequence[Task], workers: int) -> Generator[tuple[Task, PackedShard]]:
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=become_worker, initargs=(held(),))
    try:
        with interrupts_held():  # or Ctrl-C meets a worker before it has learnt to leave that to its parent
            futures = {pool.submit(pack_shard, task): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker ended in the middle of a shard: free some memory or give fewer --workers, then run again: it "
            "continues"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
