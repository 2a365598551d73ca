"""Text -> finished dataset against datatrove, dolma and Megatron-LM's fast path, one worker on one core each.

`python -m tests.benchmarks.peers_tokenizing --folder DIR` installs each peer from PyPI into an environment of its own
in DIR (without it, in a temporary one). All get the same text and the same tokenizer, GPT-2's where `../shared/data` is
there; what reads no parquet gets a JSONL copy made before. Times are of whole processes, from start to finished files,
taken in turns. What a build does once for a tokenizer and a machine (every code point, engine against reference) is
done before.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import tyro
from rich.console import Console
from rich.table import Table

from shared.format import read_index
from tests.benchmarks.environments import make_environment
from tests.benchmarks.measure import take_turns
from tests.benchmarks.tokenizing import find_input, size_mb

HERE = Path(__file__).parent
DATATROVE = ("datatrove[io,processing]==0.10.1",)
# The last three are what its s3fs needs; without their versions pip looks for them for more than ten minutes.
DOLMA = ("dolma==1.2.1", "boto3==1.28.17", "botocore==1.31.17", "aiobotocore==2.5.4")
MEGATRON = ("megatron-core==0.16.1",)  # which takes torch from this environment: from PyPI it is gigabytes


@dataclass(frozen=True)
class Side:
    """One of those that take turns: the command that writes a directory, and how many tokens are in one."""

    name: str
    command: Callable[[Path], Sequence[object]]
    num_tokens: Callable[[Path], int]


def main(folder: Path | None = None, files: int | None = None, rounds: int = 2) -> None:
    """Print MB of text a second of each, and how many times as fast we are; only the first `files` of the input."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        data, tokenizer = find_input(directory)
        data = _first_files(data, directory / "data", files)
        sides = _sides(folder or directory, directory, data, tokenizer)
        outs = {side.name: directory / f"out-{number}" for number, side in enumerate(sides)}
        _run(sides[0], directory / "before")
        turns = {side.name: lambda side=side: _run(side, outs[side.name]) for side in sides}
        seconds = take_turns(turns, rounds, warm_up=0)
        work = size_mb(sorted(data.glob("*.parquet")))
        table = Table("what", "MB/s", "ours is", "seconds", "tokens", title=f"{work:,.1f} MB of text, one core")
        for side in sides:
            ratio = seconds[side.name] / seconds[sides[0].name]
            tokens = side.num_tokens(outs[side.name])
            cells = (f"{work / seconds[side.name]:,.1f}", f"{ratio:.1f}x", f"{seconds[side.name]:,.1f}", f"{tokens:,}")
            table.add_row(side.name, *cells)
        Console().print(table)
        print(f"{rounds} rounds, medians; load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores")


def _sides(folder: Path, directory: Path, data: Path, tokenizer: Path) -> list[Side]:
    datatrove, dolma = make_environment(folder / "datatrove", DATATROVE), make_environment(folder / "dolma", DOLMA)
    megatron = make_environment(folder / "megatron", MEGATRON, with_ours=True)
    jsonl, old_tokenizer = _as_jsonl(data, directory / "text.jsonl"), _old_style(tokenizer, directory / "old.json")
    end = json.loads(tokenizer.read_bytes())["added_tokens"][0]["id"]
    ours = (sys.executable, "-m", "preprocess", "tokenize", "--workers", 1, "--tokenizer", tokenizer, data)
    steps = (HERE / "peer_megatron.py", jsonl, tokenizer)
    ids = ("--tokenizer.eos_token_id", end, "--tokenizer.pad_token_id", end, "--dtype", "uint16")
    dolma_tokens = (dolma / "dolma", "tokens", "--processes", 1, "--documents", jsonl, *ids)
    dolma_tokens = (*dolma_tokens, "--tokenizer.name_or_path", old_tokenizer, "--destination")
    return [
        Side("ours", lambda out: (*ours, out), lambda out: read_index(out).num_tokens),
        Side(
            "Megatron-LM's steps, its builder",
            lambda out: (megatron / "python", *steps, out, "builder"),
            lambda out: _num_uint16(out, "*.bin"),
        ),
        Side(
            "Megatron-LM's steps, plain",
            lambda out: (sys.executable, *steps, out, "plain"),
            lambda out: _num_uint16(out, "*.bin"),
        ),
        Side(
            "datatrove",
            lambda out: (datatrove / "python", HERE / "peer_datatrove.py", data, tokenizer, out),
            lambda out: _num_uint16(out, "*.ds"),
        ),
        Side("dolma", lambda out: (*dolma_tokens, out), lambda out: _num_uint16(out, "*.npy")),
    ]


def _run(side: Side, out: Path) -> None:
    """Write `out` anew."""
    if out.exists():
        out.rename(out.with_name(f"{out.name}-{os.urandom(4).hex()}"))  # deleting takes time too: at the end
    done = subprocess.run([*map(str, side.command(out))], cwd=HERE.parents[1], capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{side.name} failed:\n{done.stdout.decode()}{done.stderr.decode()}")


def _first_files(data: Path, directory: Path, count: int | None) -> Path:
    directory.mkdir()
    for file in sorted(data.glob("*.parquet"))[:count]:
        (directory / file.name).symlink_to(file.resolve())
    return directory


def _as_jsonl(data: Path, path: Path) -> Path:
    with open(path, "w") as out:
        for file in sorted(data.glob("*.parquet")):
            for batch in pq.ParquetFile(file).iter_batches(1000, columns=["text"]):
                for number, text in enumerate(batch.column(0).to_pylist()):
                    out.write(json.dumps({"id": str(number), "text": text}) + "\n")
    return path


def _old_style(tokenizer: Path, path: Path) -> Path:
    """The same tokenizer.json with its merges as older versions of `tokenizers` read them."""
    document = json.loads(tokenizer.read_bytes())
    merges = document["model"]["merges"]
    document["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    path.write_text(json.dumps(document))
    return path


def _num_uint16(directory: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in directory.rglob(pattern)) // 2


if __name__ == "__main__":
    tyro.cli(main)
