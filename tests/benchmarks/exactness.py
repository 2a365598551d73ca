"""Every id of every engine against `tokenizers`, on all text there is: `python -m tests.benchmarks.exactness`.

Minutes for each tokenizer, as `tokenizers` encodes everything. Texts that the build would route around an engine are
routed here too, and counted. Without `../shared/data` it is this installation's own text and one tokenizer.
"""

import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.table import Table

from preprocess.check import ShardCheck
from preprocess.choose import Engines
from preprocess.config import EngineSettings
from preprocess.encode import limit_threads, unequal_texts
from preprocess.skip import read_footers
from preprocess.sources import BadFileError, find_sources, read_texts
from preprocess.tokenizer import load_tokenizer
from tests.benchmarks.tokenizing import SHARED_DATA, find_input


def main() -> int:
    """Compare everything, print a table, and fail if an id differs."""
    table = Table("tokenizer", "engine", "files", "texts", "MB", "routed", "texts that differ", "minutes")
    num_unequal = 0
    with tempfile.TemporaryDirectory() as name:
        data, tokenizers = _input(Path(name))
        for tokenizer in tokenizers:
            began = time.perf_counter()
            counts = _compare(data, tokenizer)
            minutes = (time.perf_counter() - began) / 60
            for engine in sorted({engine for engine, _ in counts}):
                found = {what: counts[engine, what] for what in ("files", "texts", "bytes", "routed", "unequal")}
                num_unequal += found["unequal"]
                cells = [f"{found[what]:,}" for what in ("files", "texts", "bytes", "routed", "unequal")]
                cells[2] = f"{found['bytes'] / 1e6:,.1f}"
                table.add_row(tokenizer.parent.name, engine, *cells, f"{minutes:.1f}")
    Console().print(table)
    return int(num_unequal > 0)


def _input(directory: Path) -> tuple[list[Path], list[Path]]:
    """All input files that can be read, the odd ones too, and the tokenizers."""
    if not SHARED_DATA.is_dir():
        data, tokenizer = find_input(directory)
        return find_sources(str(data))[1], [tokenizer]
    files = [file for name in ("CC-MAIN-2025-26", "bad") for file in find_sources(str(SHARED_DATA / name))[1]]
    footers, _ = read_footers(files, SHARED_DATA, "text", skip_bad=True)
    return [SHARED_DATA / footer.path for footer in footers], sorted(SHARED_DATA.glob("tokenizers/*/tokenizer.json"))


def _compare(files: list[Path], tokenizer: Path) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), limit_threads, (1,)) as pool:
        for found in pool.map(_compare_file, files, [tokenizer] * len(files)):
            counts += found
    return counts


def _compare_file(file: Path, tokenizer: Path) -> Counter[tuple[str, str]]:
    """Counts by engine for the texts of one file; what cannot be read of it is left out."""
    engines = Engines(load_tokenizer(tokenizer, None), EngineSettings(num_threads=1), say=lambda _: None)
    checks = [ShardCheck(candidate, engines.reference, None, None, 0, 0) for candidate in engines.candidates()]
    counts: Counter[tuple[str, str]] = Counter()
    try:
        (footer,), _ = read_footers([file], file.parent, "text", skip_bad=False)
        for found in read_texts(file, range(len(footer.row_groups)), "text"):
            texts = found.fill_null("")
            wanted = engines.reference.encode(texts)
            for check in checks[:-1]:
                counts[check.candidate.label, "unequal"] += len(unequal_texts(check.encode(texts), wanted))
                counts[check.candidate.label, "texts"] += len(texts)
                counts[check.candidate.label, "bytes"] += texts.nbytes - 8 * (len(texts) + 1)
    except BadFileError as error:
        print(f"leaving out the rest of {file.name}: {error.reason}", flush=True)
    for check in checks[:-1]:
        counts[check.candidate.label, "files"] += 1
        counts[check.candidate.label, "routed"] += check.num_routed
    return counts


if __name__ == "__main__":
    sys.exit(main())
