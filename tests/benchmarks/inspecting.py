"""How long `inspect` takes and how large its page is: of a dataset that is there, and of 10^12 tokens in 10,000 shards.

    python -m tests.benchmarks.inspecting [TOKENS [DATA]]

The large one is shown by its index alone, and with its files, which are one file of each kind under many names.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from shared.arrays import write_array
from shared.format import num_chunks, tokens_path
from tests.benchmarks.datasets import LARGE_SHARDS, LARGE_TOKENS, LENGTH, write_large

ROUNDS = 3


def write_tokens(directory: Path) -> None:
    """The ids of all shards of the large dataset."""
    ids = np.random.default_rng(0).integers(50_257, size=num_chunks(LARGE_TOKENS, LENGTH) * LENGTH + 1)
    write_array(directory / "tokens", ids.astype(np.uint16))
    for number in range(LARGE_SHARDS):
        os.link(directory / "tokens", tokens_path(directory, number))


def measure(what: str, tokens: Path, *options: object) -> None:
    """Print what each form takes, from the start of the command to its end: the fastest of some times."""
    with TemporaryDirectory() as name:
        page = Path(name) / "page.html"
        for form in ([], ["--json"], ["--html", page, *options]):
            taken_s = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                arguments = map(str, [sys.executable, "-m", "preprocess", "inspect", tokens, *form])
                done = subprocess.run([*arguments], capture_output=True, text=True, check=False)
                taken_s.append(time.perf_counter() - began)
                assert done.returncode == 0, done.stderr
            size = f", {page.stat().st_size / 1e3:,.0f} kB" if page.exists() else ""
            print(f"{what}, {form[0] if form else 'tables'}: {min(taken_s):.2f} s{size}", flush=True)


def main(arguments: Sequence[str]) -> None:
    if arguments:
        measure(arguments[0], Path(arguments[0]), *(["--data", arguments[1]] if len(arguments) > 1 else []))
    with TemporaryDirectory(dir=Path.cwd().parent) as name:
        index, whole = Path(name) / "index", Path(name) / "whole"
        index.mkdir()
        whole.mkdir()
        write_large(whole)
        shutil.copy(whole / "index.json", index)
        measure("10^12 tokens, index alone", index)
        write_tokens(whole)
        measure("10^12 tokens, with files", whole)


if __name__ == "__main__":
    main(sys.argv[1:])
