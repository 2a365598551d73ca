"""Parquet -> finished dataset, against the fewest lines that do it with the same library and check nothing."""

import contextlib
import io
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from preprocess.build import build
from preprocess.config import BuildSettings, TokenizerSettings
from preprocess.corpus import sample_corpus
from tests.benchmarks.measure import Comparison, compare


def measure() -> Comparison:
    """MB of text a second, all cores, tokenizer and input in the page cache."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        directory = Path(name)
        sample_corpus(directory / "corpus", 8_000_000)
        files = sorted((directory / "corpus").glob("*.parquet"))
        build(str(directory / "corpus"), directory / "first", BuildSettings(), TokenizerSettings(vocab_size=8192))
        tokenizer_path = directory / "first" / "tokenizer.json"
        numbers = itertools.count()

        def ours() -> None:
            tokens = directory / f"tokens-{next(numbers)}"
            build(str(directory / "corpus"), tokens, BuildSettings(), TokenizerSettings(str(tokenizer_path)))

        def bare() -> None:
            tokenizer = Tokenizer.from_file(str(tokenizer_path))
            with open(directory / "bare.bin", "wb") as out:
                for file in files:
                    for batch in pq.ParquetFile(file).iter_batches(1000, columns=["text"]):
                        for encoding in tokenizer.encode_batch_fast(batch.column(0).to_pylist()):
                            out.write(np.array([*encoding.ids, 0], np.uint16).tobytes())

        size_mb = sum(len(text) for file in files for text in _texts(file)) / 1e6
        return compare("tokenize", "MB/s of text", size_mb, ours, bare, rounds=3)


def _texts(file: Path) -> list[bytes]:
    return [text.encode() for text in pq.ParquetFile(file).read(columns=["text"]).column(0).to_pylist()]
