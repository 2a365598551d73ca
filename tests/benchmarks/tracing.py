"""How long `trace` takes: on a dataset that is there, and on 10^12 tokens in 10,000 shards.

    python -m tests.benchmarks.tracing [TOKENS]

The large one has an index and where its documents begin, and no tokens: a step and a document are found without them.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from shared.config import unstructure
from shared.cursor import Cursor
from shared.format import read_index
from shared.storage import write_sealed
from tests.benchmarks.datasets import LENGTH, write_large
from train.config import RunConfig, load_recipe
from train.layout import Layout

BATCH, STEPS = 512, 10**6


def write_run(run: Path, tokens: Path, config: RunConfig, total_steps: int) -> None:
    """A run that has just begun."""
    run.mkdir(parents=True)
    identity = {"recipe": unstructure(config), "dataset": read_index(tokens).fingerprint, "packing": None}
    write_sealed(run / "run.json", {"identity": identity, "total_steps": total_steps})
    layout = Layout("fsdp", 1, 1, 64, config.data.global_batch // 64)
    told = {"cursor": Cursor(0, 0, 0), "data": unstructure(config.data), "grid": asdict(layout), "microbatch": 1}
    start = {"event": "start", "step": 0, "layout": str(layout), "reads": {**told, "tokens": str(tokens)}}
    (run / "events.jsonl").write_text(json.dumps(start) + "\n")


def config_of(global_batch: int) -> RunConfig:
    """A shuffled run over chunks of LENGTH."""
    recipe = load_recipe("125m")
    data = replace(
        recipe.data, sequence_length=LENGTH, global_batch=global_batch, order="shuffled", shuffle_length=None
    )
    return replace(recipe, data=replace(data, validation_chunks=global_batch, validation="reserved", packing=None))


def timed(what: str, *arguments: object) -> None:
    """Print what a command takes, from its start to its end."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)
    taken_s = time.perf_counter() - began
    assert done.returncode == 0, done.stderr
    print(f"{what}: {taken_s:.2f} s, {len(done.stdout.splitlines()):,} lines")


def main(arguments: Sequence[str]) -> None:
    trace = "-m", "train", "trace"
    timed("python, torch and the command lines of train", "-c", "import train.commands")
    with TemporaryDirectory(dir=Path.cwd().parent) as name:
        directory = Path(name)
        if arguments:
            tokens = Path(arguments[0]).absolute()
            write_run(directory / "run", tokens, config_of(64), 10_000)
            source = read_index(tokens).sources[0].path
            timed("a step of 64 chunks", *trace, "--run", directory / "run", "--step", 7)
            timed("ten steps of 64 chunks", *trace, "--run", directory / "run", "--step", "11..20")
            timed("a document by its row", *trace, "--run", directory / "run", "--doc", f"{source}:5", "--json")
            told = ["-m", "preprocess", "documents", str(tokens)]
            timed("preprocess: one row", *told, f"{source}:5")
            found = subprocess.run([sys.executable, *told, f"{source}:5"], capture_output=True, text=True, check=True)
            identity = json.loads(found.stdout)["id"]
            timed("a document by its id", *trace, "--run", directory / "run", "--doc", identity, "--json")
            timed("preprocess: find an id", *told, "--find", identity)
        large = directory / "large"
        large.mkdir()
        write_large(large)
        write_run(directory / "huge", large, config_of(BATCH), STEPS)
        timed("10^12 tokens: a step of 512 chunks", *trace, "--run", directory / "huge", "--step", 777_777)
        timed("10^12 tokens: a document", *trace, "--run", directory / "huge", "--doc", "05000.parquet:60000")


if __name__ == "__main__":
    main(sys.argv[1:])
