"""JSON lines -> text by one thread, against a bare loop of `json.loads` over the same files, and parquet decode.

The input is the first files of `../shared/data` where that is there, else this installation's own text.
"""

import io
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from preprocess.corpus import sample_corpus
from preprocess.encode import limit_threads
from preprocess.sources import read_footer, read_texts
from tests.benchmarks.measure import Comparison, compare

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data" / "CC-MAIN-2025-26"
NUM_FILES = 4


def measure() -> list[Comparison]:
    """MB of text a second on one core: .jsonl, .jsonl.zst and parquet, each against the fewest lines that read it."""
    limit_threads(1)
    with tempfile.TemporaryDirectory() as name:
        data = SHARED_DATA
        if not data.is_dir():
            data = Path(name) / "corpus"
            sample_corpus(data, 50_000_000)
        parquet = sorted(data.glob("*.parquet"))[:NUM_FILES]
        plain, compressed, size_mb = _as_json_lines(parquet, Path(name))
        sides = {"parquet": (parquet, _bare_parquet), "jsonl": (plain, _bare), "jsonl.zst": (compressed, _bare_zstd)}
        return [_compare(f"decode {kind}", files, bare, size_mb) for kind, (files, bare) in sides.items()]


def _compare(name, files, bare, size_mb) -> Comparison:
    num_groups = {file: len(read_footer(file, file.parent, "text").row_groups) for file in files}

    def ours() -> None:
        for file in files:
            for _ in read_texts(file, range(num_groups[file]), "text"):
                pass

    return compare(name, "MB/s", size_mb, ours, lambda: [bare(file) for file in files])


def _as_json_lines(files: list[Path], directory: Path) -> tuple[list[Path], list[Path], float]:
    plain, compressed, size_bytes = [], [], 0
    for file in files:
        rows = pq.ParquetFile(file).read().to_pylist()
        data = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        plain.append(directory / f"{file.stem}.jsonl")
        compressed.append(directory / f"{file.stem}.jsonl.zst")
        plain[-1].write_bytes(data)
        compressed[-1].write_bytes(zstandard.ZstdCompressor(level=3).compress(data))
        size_bytes += sum(len(row["text"].encode()) for row in rows)
    return plain, compressed, size_bytes / 1e6


def _bare(file: Path) -> None:
    with open(file, "rb") as lines:
        pa.array([json.loads(line)["text"] for line in lines], pa.large_string())


def _bare_zstd(file: Path) -> None:
    with open(file, "rb") as stored:
        lines = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(stored), 1 << 20)
        pa.array([json.loads(line)["text"] for line in lines], pa.large_string())


def _bare_parquet(file: Path) -> None:
    for _ in pq.ParquetFile(file).iter_batches(1000, columns=["text"], use_threads=False):
        pass
