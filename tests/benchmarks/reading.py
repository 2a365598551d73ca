"""Batches against a bare gather of as many rows, packed ones against plain ones; cold pages; opening a huge dataset.

The bare side knows where every row is: from a map of one file it takes a batch of them into a buffer (np.take) and
widens that into another (np.copyto), both used again and again. It neither hashes nor shifts nor counts.
"""

import gc
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch

from preprocess.config import PackSettings
from preprocess.pack import pack
from shared.format import Index, read_index, tokens_path, write_index
from tests.benchmarks.datasets import write_dataset
from tests.benchmarks.measure import Comparison, compare, take_turns
from train.architecture import ArgonneConfig
from train.config import DataConfig, RunConfig
from train.data import ChunkReader
from train.views import open_view

LENGTH, NUM_ROWS, CHUNKS_COLD, HUGE_SHARDS = 2048, 16384, 1200, 15_000
COLD_SHARDS, COLD_CHUNKS = 32, 32_768  # 4 GB: more than the system reads ahead around one page
DEPTHS, HEADER_BYTES = (1, 4, 16, 32), 128


def measure() -> list[Comparison]:
    """Sequences a second of one process on one core, page cache warm; cold; and what opening takes."""
    cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {max(cores)})
    torch.set_num_threads(1)
    try:
        return _measure()
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def _measure() -> list[Comparison]:
    with tempfile.TemporaryDirectory() as name:
        few, many, large = Path(name, "few"), Path(name, "many"), Path(name, "large")
        for directory in (few, many, large):
            directory.mkdir()
        write_dataset(few, 4, 8192 * LENGTH)
        write_dataset(many, 10_000, 16 * LENGTH)
        write_dataset(large, COLD_SHARDS, COLD_CHUNKS * LENGTH)
        pack(few, PackSettings(LENGTH))
        results = [
            *(_warm(f"read, batch {batch}", few, LENGTH, batch) for batch in (8, 32, 256)),
            _warm("read at 65,536, batch 8", few, 65_536, 8),
            _warm("read, batch 256, from 10,000 shards", many, LENGTH, 256),
        ]
        plain, packed, told = (
            _reader(few, **options) for options in ({}, {"packing": "best-fit"}, {"document_mask": True})
        )
        for what, reader in (("packed", packed), ("with documents", told)):
            against = f"read {what}, against plain"
            results.append(compare(against, "sequences/s", NUM_ROWS, _reading(reader, 256), _reading(plain, 256)))
        for reader in (plain, packed, told):
            reader.close()
        return [*results, *_cold(large), _opening(few)]


def _warm(what: str, directory: Path, length: int, batch: int) -> Comparison:
    reader, num_rows = _reader(directory, length, batch), NUM_ROWS * LENGTH // length // batch * batch
    ids = np.memmap(tokens_path(directory, 0), np.uint16, "r", 128)
    if directory.name == "many":  # the bare side has it easier: one file of the same size
        ids = np.memmap(tokens_path(directory.with_name("few"), 0), np.uint16, "r", 128)
    rows = np.asarray(ids[: len(ids) // length * length].reshape(-1, length))
    order = np.random.default_rng(0).integers(0, len(rows), num_rows)
    narrow, wide = np.empty((batch, length), np.uint16), np.empty((batch, length), np.int64)

    def bare() -> None:
        for first in range(0, num_rows, batch):
            np.take(rows, order[first : first + batch], axis=0, out=narrow, mode="clip")
            np.copyto(wide, narrow)

    result = compare(what, "sequences/s", num_rows, _reading(reader, batch, num_rows), bare)
    reader.close()
    return result


def _cold(directory: Path) -> list[Comparison]:
    """Rows that are on the disk alone, other ones in each turn: by the reader, by plain maps, by nothing but reads.

    The reads, of as many bytes from open files, are what plain threads get from the disk at several depths.
    """
    order = np.random.default_rng(1).permutation(COLD_SHARDS * COLD_CHUNKS).tolist()
    turns = {name: count(0) for name in ("ours", "plain", *DEPTHS)}
    paths = [tokens_path(directory, shard) for shard in range(COLD_SHARDS)]

    def rows(side: str | int) -> list[tuple[int, int]]:
        first = next(turns[side]) * CHUNKS_COLD
        return [divmod(chunk, COLD_CHUNKS) for chunk in order[first : first + CHUNKS_COLD]]

    def plain() -> None:
        maps = [np.load(path, mmap_mode="r") for path in paths]
        for shard, offset in rows("plain"):
            maps[shard][offset * LENGTH : offset * LENGTH + LENGTH + 1].astype(np.int64)

    def ours() -> None:
        reader, first = _reader(directory, LENGTH, 20), next(turns["ours"]) * CHUNKS_COLD
        for position in range(first, first + CHUNKS_COLD, 20):
            reader.fetch(position)
        reader.close()

    sides: dict[str, Callable[[], object]] = {"ours": ours, "plain": plain}
    sides |= {f"reads {depth}": lambda depth=depth: _reads(paths, rows(depth), depth) for depth in DEPTHS}
    taken = take_turns(sides, 5, 1, lambda: _forget(directory))
    each = {name: CHUNKS_COLD / seconds for name, seconds in taken.items()}
    best = max(DEPTHS, key=lambda depth: each[f"reads {depth}"])
    against = "read from a cold disk, against "
    return [
        Comparison(f"{against}plain maps", "sequences/s", each["ours"], each["plain"]),
        Comparison(f"{against}one read at a time", "sequences/s", each["ours"], each["reads 1"]),
        Comparison(f"{against}{best} at a time, the fastest depth", "sequences/s", each["ours"], each[f"reads {best}"]),
    ]


def _reads(paths: list[Path], rows: list[tuple[int, int]], depth: int) -> None:
    """Read these rows by so many threads, and nothing else."""
    files = [os.open(path, os.O_RDONLY) for path in paths]
    for file in files:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)

    def read(number: int) -> None:
        buffer = [bytearray(2 * (LENGTH + 1))]
        for shard, offset in rows[number::depth]:
            os.preadv(files[shard], buffer, HEADER_BYTES + offset * LENGTH * 2)

    with ThreadPoolExecutor(depth) as threads:
        list(threads.map(read, range(depth)))
    for file in files:
        os.close(file)


def _forget(directory: Path) -> None:
    """Have the system drop what it keeps of the dataset's ids in memory; what is mapped would stay."""
    gc.collect()
    for path in sorted(directory.glob("0*.npy")):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _opening(directory: Path) -> Comparison:
    """Milliseconds from nothing to the cursor at any position of 10^12 tokens, against parsing the JSON alone."""
    import json

    huge = _huge(read_index(directory))
    with tempfile.TemporaryDirectory() as name:
        write_index(Path(name), huge)

        def ours() -> None:
            config = _config(LENGTH, 8)
            reader = ChunkReader(
                open_view(Path(name), read_index(Path(name)), config), config, 0, 1, torch.device("cpu")
            )
            reader.order.cursor(987_654_321)
            reader.close()

        def bare() -> None:
            json.loads((Path(name) / "index.json").read_bytes())

        return compare("open 10^12 tokens, go to any position", "times/s", 1, ours, bare)


def _huge(index: Index) -> Index:
    tokens = 10**12 // HUGE_SHARDS
    shard = replace(index.shards[0], num_tokens=tokens, num_chunks=tokens // LENGTH + 1, tokens_sha256="ab" * 32)
    sources = [replace(index.sources[0], path=f"000_{number:05d}.parquet") for number in range(HUGE_SHARDS)]
    return replace(index, sources=sources, shards=[replace(shard, source=i) for i in range(HUGE_SHARDS)])


def _config(length: int, batch: int, **options: object) -> RunConfig:
    data = DataConfig(sequence_length=length, global_batch=batch, **options)  # type: ignore[arg-type]
    return RunConfig(model=ArgonneConfig(max_position_embeddings=length), data=data)


def _reader(directory: Path, length: int = LENGTH, batch: int = 256, **options: object) -> ChunkReader:
    config = _config(length, batch, **options)
    return ChunkReader(open_view(directory, read_index(directory), config), config, 0, 1, torch.device("cpu"))


def _reading(reader: ChunkReader, batch: int, num_rows: int = NUM_ROWS) -> Callable[[], None]:
    def read() -> None:
        for position in range(0, num_rows, batch):
            reader.fetch(position)

    return read


def main() -> None:
    """Measure reading alone and print each figure, with the memory that all of it took."""
    import resource

    began = time.perf_counter()
    for comparison in measure():
        print(*comparison.row(), sep="  ", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{time.perf_counter() - began:.0f} s, peak memory {peak:,.0f} MB")


if __name__ == "__main__":
    main()
