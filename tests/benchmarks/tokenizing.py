"""Parquet -> finished dataset by one worker, against the fewest lines that do it and check nothing.

The bare loop is the path of the engine's own documentation: no checks, no index, no offsets, no checksums, no sync. The
input is `../shared/data` with its GPT-2 tokenizer where that is there, else this installation's own text.
"""

import contextlib
import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import awkward as ak
import gigatoken
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from preprocess.build import build
from preprocess.config import BuildSettings, EngineSettings, Execution, TokenizerSettings
from preprocess.corpus import sample_corpus
from preprocess.encode import limit_threads
from preprocess.engines import ordinary
from shared.allocator import keep_freed_memory
from tests.benchmarks.measure import Comparison, compare

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
REFERENCE_FILES = 1  # `tokenizers` is too slow for more


def measure() -> list[Comparison]:
    """MB of text a second on one core: ours over bare gigatoken, and ours over bare `tokenizers`."""
    limit_threads(1)
    quiet = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as name, quiet, _on_one_core():
        directory = Path(name)
        data, tokenizer_path = find_input(directory)
        files = sorted(data.glob("*.parquet"))
        settings = (
            BuildSettings(),
            TokenizerSettings(str(tokenizer_path)),
            Execution(engines=EngineSettings(num_threads=1)),
        )
        numbers = itertools.count()
        raw = tokenizer_path.read_bytes()
        keep_freed_memory()  # as a worker does; the bare loop gains as much from it

        def written() -> Path:
            """Where the next turn writes; what earlier ones wrote is deleted first, for both sides the same."""
            for path in directory.glob("out-*"):
                shutil.rmtree(path)
            return directory / f"out-{next(numbers)}"

        def ours() -> None:
            build(str(data), written(), *settings)

        def ours_on_few() -> None:
            build(str(files[0]), written(), *settings)

        everything = compare(
            "tokenize, bare gigatoken",
            "MB/s",
            size_mb(files),
            ours,
            lambda: _bare_fast(raw, files, written()),
            rounds=3,
        )
        few = files[:REFERENCE_FILES]
        reference = compare(
            "tokenize, bare tokenizers",
            "MB/s",
            size_mb(few),
            ours_on_few,
            lambda: _bare(raw, few, written()),
            rounds=1,
        )
        return [everything, reference]


@contextlib.contextmanager
def _on_one_core() -> Iterator[None]:
    """Whatever runs meanwhile has one core, the waits for the disk included."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def find_input(directory: Path) -> tuple[Path, Path]:
    """A directory of parquet files and a tokenizer.json for them: the shared ones, or made in `directory`."""
    if SHARED_DATA.is_dir():
        return SHARED_DATA / "CC-MAIN-2025-26", SHARED_DATA / "tokenizers" / "gpt2" / "tokenizer.json"
    data, first = directory / "corpus", directory / "first"
    sample_corpus(data, 50_000_000)
    build(str(data), first, BuildSettings(), TokenizerSettings(vocab_size=8192))
    return data, first / "tokenizer.json"


def _bare_fast(raw: bytes, files: list[Path], directory: Path) -> None:
    directory.mkdir()
    tokenizer = gigatoken.Tokenizer.from_json(json.dumps(ordinary(json.loads(raw))))
    with open(directory / "bare.bin", "wb") as out:
        for file in files:
            for batch in pq.ParquetFile(file, memory_map=True).iter_batches(1000, columns=["text"], use_threads=False):
                texts = batch.column(0).cast(pa.large_string())
                offsets = np.frombuffer(texts.buffers()[1], np.int64)[: len(texts) + 1]
                chars = ak.contents.NumpyArray(
                    np.frombuffer(texts.buffers()[2], np.uint8), parameters={"__array__": "char"}
                )
                strings = ak.contents.ListOffsetArray(
                    ak.index.Index64(offsets), chars, parameters={"__array__": "string"}
                )
                layout = tokenizer.encode_batch(ak.Array(strings), parallel=False).layout
                ids, ends = layout.content.data, layout.offsets.data[1:] + np.arange(len(texts))
                packed, is_id = np.zeros(len(ids) + len(texts), np.uint16), np.ones(len(ids) + len(texts), np.bool_)
                is_id[ends] = False
                packed[is_id] = ids
                out.write(packed.data)


def _bare(raw: bytes, files: list[Path], directory: Path) -> None:
    directory.mkdir()
    tokenizer = Tokenizer.from_str(raw.decode())
    with open(directory / "bare.bin", "wb") as out:
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(1000, columns=["text"]):
                for encoding in tokenizer.encode_batch_fast(batch.column(0).to_pylist()):
                    out.write(np.array([*encoding.ids, 0], np.uint16).tobytes())


def size_mb(files: list[Path]) -> float:
    """MB of text in `files`."""
    columns = [pq.ParquetFile(file).read(columns=["text"]).column(0).cast(pa.large_string()) for file in files]
    return sum(chunk.nbytes for column in columns for chunk in column.chunks) / 1e6
