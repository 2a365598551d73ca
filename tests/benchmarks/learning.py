"""A tokenizer of 32,768 entries learned from 200 MB of text, against `tokenizers` on the same text.

Both are given the whole of it and must give the same bytes. The input is as in `tokenizing.py`.
"""

import contextlib
import io
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from preprocess.encode import limit_threads
from preprocess.trainer import train, train_reference
from tests.benchmarks.measure import Comparison, compare
from tests.benchmarks.tokenizing import find_input

TEXT_BYTES, VOCAB_SIZE, END_OF_DOCUMENT = 200_000_000, 32768, "<|endoftext|>"


def measure() -> Comparison:
    """MB of text a second on one core, one turn each."""
    limit_threads(1)
    made: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        files = sorted(find_input(Path(name))[0].glob("*.parquet"))
        size_mb = sum(len(text.encode()) for texts in _batches(files) for text in texts) / 1e6
        train(lambda: itertools.islice(_batches(files), 1), 300, END_OF_DOCUMENT)  # what is done once for a machine

        def ours() -> None:
            made["ours"] = train(lambda: _batches(files), VOCAB_SIZE, END_OF_DOCUMENT)

        def bare() -> None:
            made["bare"] = train_reference(_batches(files), VOCAB_SIZE, END_OF_DOCUMENT)

        result = compare("learn a tokenizer", "MB/s", size_mb, ours, bare, rounds=1, warm_up=0)
    assert made["ours"] == made["bare"], "the trainers learned different tokenizers"
    return result


def _batches(files: list[Path]) -> Iterator[list[str]]:
    """Documents of the files in order, until there is enough."""
    left = TEXT_BYTES
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(1000, columns=["text"]):
            texts = batch.column(0).to_pylist()
            yield texts
            left -= sum(len(text.encode()) for text in texts)
            if left <= 0:
                return
