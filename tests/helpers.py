"""What several test modules share."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shared.format import TOKENIZER_NAME, open_documents, open_tokens, read_index

REPOSITORY = Path(__file__).parent.parent


def write_parquet(path: Path, texts: Sequence[str | None], *, rows_per_group: int = 100, column: str = "text") -> Path:
    """A parquet file with the texts in row groups of `rows_per_group`, and an id column before them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": [str(i) for i in range(len(texts))], column: pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=rows_per_group, compression="zstd")
    return path


def read_column(path: Path, column: str = "text") -> list[str | None]:
    """The texts of a parquet file, read the plain way."""
    return pq.ParquetFile(path).read(columns=[column]).column(0).to_pylist()


def start_cli(module: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """A real process that runs `python -m module arguments`."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run_cli(module: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a real process that runs `python -m module arguments` has printed and returned."""
    process = start_cli(module, *arguments, **environment)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def dataset_rows(directory: Path) -> list[tuple[str, int, list[int]]]:
    """Source path, row and ids (end of document included) of every input row, in order."""
    index = read_index(directory)
    rows = []
    for number, shard in enumerate(index.shards):
        tokens, offsets = open_tokens(directory, index, number), open_documents(directory, index, number)
        for row in range(shard.num_rows):
            ids = np.asarray(tokens[offsets[row] : offsets[row + 1]]).tolist()
            rows.append((index.sources[shard.source].path, shard.first_row + row, ids))
    return rows


def plain_tokenizer(directory: Path):
    """The dataset's tokenizer as an independent reader would load it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / TOKENIZER_NAME))
    tokenizer.encode_special_tokens = True
    return tokenizer


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of a dataset by name."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name != ".lock"}
