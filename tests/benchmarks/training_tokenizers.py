"""`python -m tests.benchmarks.training_tokenizers`: a tokenizer by gigabpe and by `tokenizers`, their bytes compared.

Each trains once, in a process of its own, on 200 MB spread over `../shared/data` where that is there, else on as much
of this installation's own text as there is. It takes minutes, so `make bench` leaves it out.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.table import Table

from preprocess import fast_trainer, trainer
from preprocess.config import TrainerSettings
from preprocess.corpus import sample_corpus
from preprocess.sampling import Sample, open_sample

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data" / "CC-MAIN-2025-26"
SAMPLE_BYTES = 200_000_000


@dataclass(frozen=True)
class Trained:
    """What one training took and gave."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    sha256: str

    def row(self) -> tuple[str, str, str]:
        """Cells for a table."""
        return f"{self.seconds:.1f}", f"{self.cpu_seconds:.1f}", f"{self.peak_bytes / 1e6:,.0f}"


def main(vocab_sizes: list[int]) -> None:
    """Train with both and print a row for each size of vocabulary."""
    with tempfile.TemporaryDirectory() as name:
        sample = open_sample(str(_data(Path(name))), "text", SAMPLE_BYTES)
        size_mb = sum(texts.nbytes for texts in sample) / 1e6
        title = f"{size_mb:,.0f} MB of text, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        table = Table("entries", "trainer", "seconds", "CPU seconds", "peak MB", title=title)
        for vocab_size in vocab_sizes:
            fast, reference = (_alone(partial(train, sample, vocab_size, is_fast=is_fast)) for is_fast in (True, False))
            assert fast.sha256 == reference.sha256, "the two trainers give other bytes"
            table.add_row(f"{vocab_size:,}", "gigabpe", *fast.row())
            table.add_row("", "tokenizers", *reference.row())
            ratios = reference.seconds / fast.seconds, reference.cpu_seconds / fast.cpu_seconds
            table.add_row("", "ratio", *(f"{ratio:.1f}" for ratio in ratios))
    Console().print(table)


def train(sample: Sample, vocab_size: int, *, is_fast: bool) -> Trained:
    """One training, reading the sample included and the comparison that is made once left out."""
    settings = TrainerSettings(vocab_size)
    began, cpu_began = time.perf_counter(), time.process_time()
    if is_fast:
        raw = trainer.tokenizer_file(fast_trainer.learn(sample, vocab_size, trainer.MIN_FREQUENCY), settings)
    else:
        raw = trainer.train_reference(sample, settings)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB
    return Trained(seconds, cpu_seconds, peak_bytes, sha256(raw).hexdigest())


def _alone(work: Callable[[], Trained]) -> Trained:
    """The result of `work` in a fresh process, whose peak of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work).result()


def _data(directory: Path) -> Path:
    if SHARED_DATA.is_dir():
        return SHARED_DATA
    sample_corpus(directory / "corpus", SAMPLE_BYTES)
    return directory / "corpus"


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [32768])
