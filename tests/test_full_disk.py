"""A disk or a limit that ends in the middle of a build costs what was being written, and no more."""

import os
import re
import resource
import shutil
import signal
import subprocess
from contextlib import suppress

import pytest

from tests.crash_points import state_of
from tests.helpers import await_that, read_column, start_cli, write_parquet
from tests.throwaway import write_input, write_tokenizer

pytestmark = pytest.mark.slow
DISK_BYTES, LIMIT_BYTES = 1 << 20, 20_000
RESUMED = re.compile(r"\d+ of \d+ shards are already there")


def start(data, tokenizer, out, **limits):
    options = ["--tokenizer", tokenizer, "--chunk-length", 32, "--shard-megabytes", 0.01, "--workers", 2]
    return start_cli("preprocess", "tokenize", data, out, *options, "--engine", "tokenizers", **limits)


def check_stopped_and_continue(stopped, told, out, inputs, make_room):
    """What was finished is unharmed, and the same command goes on from there to the same bytes."""
    _, errors = stopped.communicate(timeout=120)
    assert stopped.returncode == 2, errors
    assert re.search(rf"^error: \S+/000\d\d\.[a-z.]+ cannot be written \({told}", errors, re.MULTILINE), errors
    assert errors.count("error: ") == 1
    data, tokenizer, clean = inputs
    left = state_of(out)
    assert {"index.json"} < clean.keys() - left.keys()
    assert "00000.json" in left
    assert left.items() <= clean.items()
    make_room()
    again = start(data, tokenizer, out)
    said, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert RESUMED.search(said)
    assert state_of(out) == clean


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Two files of text, of which the second makes a larger shard, a tokenizer, and the dataset of both."""
    directory = tmp_path_factory.mktemp("full")
    data = write_input(directory / "in", num_files=1)
    write_parquet(data / "1.parquet", read_column(data / "0.parquet") * 2, rows_per_group=1000)
    tokenizer = write_tokenizer(directory / "tokenizer.json", data)
    assert start(data, tokenizer, directory / "clean").wait() == 0
    sizes = [path.stat().st_size for path in sorted((directory / "clean").glob("0000?.npy"))]
    assert max(sizes[:-1]) < LIMIT_BYTES < sizes[-1]
    return data, tokenizer, state_of(directory / "clean")


def test_a_build_that_meets_a_limit_of_files_tells_path_and_bytes_and_goes_on_without_it(inputs, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, before[1]))
    try:
        stopped = start(*inputs[:2], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = r"File too large; at least [\d,]+ bytes are wanted for it\): allow larger files \(`ulimit -f`\), then run"
    check_stopped_and_continue(stopped, told, tmp_path / "out", inputs, lambda: None)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a megabyte."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", directory], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount")
    yield directory
    subprocess.run(["umount", directory], check=True)


def test_a_build_whose_disk_fills_up_tells_path_and_bytes_and_goes_on_once_there_is_room(inputs, small_disk):
    out, filling = small_disk / "out", small_disk / "filling"
    stopped = start(*inputs[:2], out)
    await_that((out / "00000.json").exists, stopped)
    os.killpg(stopped.pid, signal.SIGSTOP)
    with suppress(OSError), filling.open("wb", buffering=0) as file:
        while file.write(bytes(1000)):
            pass
    os.killpg(stopped.pid, signal.SIGCONT)
    told = r"No space left on device(; at least [\d,]+ bytes are wanted for it)?\): make room on that disk, then run"
    check_stopped_and_continue(stopped, told, out, inputs, filling.unlink)


def test_a_build_does_not_begin_on_a_disk_that_is_too_small(inputs, small_disk):
    (small_disk / "filling").write_bytes(bytes(shutil.disk_usage(small_disk).free - 50_000))
    refused = start(*inputs[:2], small_disk / "out")
    _, errors = refused.communicate(timeout=120)
    assert refused.returncode == 2
    assert re.search(r"out has 0\.00 GB free, about 0\.00 GB are wanted for the shards to write: make room", errors)
