"""A small input of text drawn from a seed, and a tokenizer of it: all that a throw-away build needs."""

import random
from pathlib import Path

from tests.helpers import run_cli, write_parquet

SYLLABLES = ["ba", "den", "ki", "lo", "mur", "ne", "os", "pra", "ti", "un", "\u00e9", "\u6f22\u5b57", "\U0001f642"]
VOCAB_SIZE = 300


def write_input(directory: Path, num_files: int = 2, rows: int = 60, seed: int = 0) -> Path:
    """Parquet files of short texts in row groups of 10, some of them null, empty or there before."""
    drawn = random.Random(seed)
    texts: list[str | None] = [None, ""]
    for number in range(num_files):
        for _ in range(rows):
            words = ["".join(drawn.choices(SYLLABLES, k=drawn.randint(1, 3))) for _ in range(drawn.randint(1, 120))]
            texts.append(drawn.choice(texts) if drawn.random() < 0.1 else " ".join(words))
        write_parquet(directory / f"{number}.parquet", texts[-rows:], rows_per_group=10)
    return directory


def write_tokenizer(path: Path, data: Path) -> Path:
    """A byte-level tokenizer of a few hundred entries, trained on `data` in a process of its own."""
    made = run_cli("preprocess", "tokenizer", data, path, "--vocab-size", VOCAB_SIZE)
    assert made.returncode == 0, made.stderr
    return path
