"""What several test modules share."""

import io
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from shared.errors import UserError
from shared.format import TOKENIZER_NAME, open_documents, open_tokens, read_index

REPOSITORY = Path(__file__).parent.parent


def write_parquet(path: Path, texts: Sequence[str | None], *, rows_per_group: int = 100, column: str = "text") -> Path:
    """A parquet file with the texts in row groups of `rows_per_group`, and an id column before them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": [str(i) for i in range(len(texts))], column: pa.array(texts, pa.string())})
    pq.write_table(table, path, row_group_size=rows_per_group, compression="zstd")
    return path


def named_rows(start: int, count: int) -> list[dict]:
    """Rows that say in every column which they are; some have no text, and one url is hostile."""
    return [
        {
            "id": f"<urn:{i}>",
            "text": None if i % 7 == 3 else f"document number {i} says the word w{i}w",
            "url": f"https://example.org/{i}" if i != 5 else "https://example.org/\x1b[2J\u202e",
            "date": f"2025-06-{1 + i % 28:02d}",
        }
        for i in range(start, start + count)
    ]


def write_named(path: Path, rows: Sequence[dict], rows_per_group: int) -> None:
    """A parquet file of such rows."""
    table = pa.table(
        {name: pa.array([row[name] for row in rows], pa.string()) for name in ("text", "id", "url", "date")}
    )
    pq.write_table(table, path, row_group_size=rows_per_group)


def zstd(data: bytes, **options) -> bytes:
    """One zstd frame of `data`."""
    return zstandard.ZstdCompressor(**options).compress(data)


def write_jsonl(path: Path, rows: Sequence[dict | str | None], *, frames: int = 1) -> Path:
    """JSON lines of the rows, of which a string or null is a text; with .zst in the name in so many zstd frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = [row if isinstance(row, dict) else {"id": str(i), "text": row} for i, row in enumerate(rows)]
    data = b"".join(json.dumps(row, ensure_ascii=i % 2 == 0).encode() + b"\n" for i, row in enumerate(objects))
    if path.suffix == ".zst":
        size = -(-max(len(data), 1) // frames)
        data = b"".join(zstd(data[i : i + size]) for i in range(0, size * frames, size))
    path.write_bytes(data)
    return path


def read_column(path: Path, column: str = "text") -> list[str | None]:
    """The texts of a parquet file, read the plain way."""
    return pq.ParquetFile(path).read(columns=[column]).column(0).to_pylist()


def start_cli(module: str, *arguments: object, **environment: str) -> subprocess.Popen[str]:
    """A real process, the leader of its own group, that runs `python -m module arguments`."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run_cli(module: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a real process that runs `python -m module arguments` has printed and returned."""
    process = start_cli(module, *arguments, **environment)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def beside_progress(stderr: str) -> str:
    """What a build has said on stderr, without the lines that tell every ten seconds how far it is."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.startswith("shards "))


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
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if not path.name.startswith(".lock")}


def workers_of(pid: int) -> list[int]:
    """The worker processes of a build, as the system knows them: children, or children of what they are forked from."""
    children = [child for child in _children(pid) if b"spawn_main" in _about(child, "cmdline")]
    for child in _children(pid):
        if b"forkserver" in _about(child, "cmdline"):
            children += _children(child)
    return children


def _children(pid: int) -> list[int]:
    return [int(child) for child in _about(pid, f"task/{pid}/children").split()]


def parent_of(pid: int) -> int:
    """The process that started a process."""
    return int(_about(pid, "stat").rpartition(b")")[2].split()[1])


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or dead and only not yet asked for its exit code."""
    return _about(pid, "stat").rpartition(b")")[2].split()[:1] in ([], [b"Z"], [b"X"])


def has_open(pid: int, name: str) -> bool:
    """Whether a process has a file of this name open."""
    try:
        return any(link.readlink().name == name for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # the process or its file is gone meanwhile
        return False


def _about(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


def await_that(condition: Callable[[], object], process: subprocess.Popen[str], timeout_s: float = 60) -> None:
    """Wait until `condition` holds while `process` runs."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end_s, "not in time"
        time.sleep(0.002)


@contextmanager
def another_process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A real process that runs `code` up to where it prints "ready"; it ends, at the latest, with the block."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()
            yield process
        finally:
            process.kill()


def outcome_of(work: Callable[[], object]) -> tuple[int, str]:
    """The exit code that a command would have that does `work`, and all that it says; for a fork about to end."""
    code, said = 1, io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            work()
        code = 0
    except UserError as error:
        code = 2
        print(f"error: {error}", file=said)
    except BaseException:
        traceback.print_exc(file=said)
    return code, said.getvalue()


def on_ranks(num_processes: int, module: str, argument: object) -> None:
    """Run `python -m module argument` as so many real ranks of one thread each; all of them must end well."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    completed = subprocess.run(
        [sys.executable, *launcher, "-m", module, str(argument)],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr[:6000]
