import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from preprocess.__main__ import main
from preprocess.build import build, check_space
from preprocess.config import BuildSettings, EngineSettings, Execution, TokenizerSettings
from preprocess.job import Job
from preprocess.plan import PlannedShard, make_plan, needed_bytes
from preprocess.progress import Progress
from preprocess.sources import read_footer
from preprocess.tokenizer import load_tokenizer
from preprocess.workers import TRIES, _start, write_on_workers
from shared.errors import ConfigError, UserError
from shared.format import read_index
from tests.helpers import (
    REPOSITORY,
    await_that,
    beside_progress,
    contents,
    has_ended,
    has_open,
    parent_of,
    run_cli,
    start_cli,
    workers_of,
    write_jsonl,
    write_parquet,
)

SETTINGS = BuildSettings(64, "text", 200_000)
# With the slowest engine: what is to be killed in the middle must last until then.
OPTIONS = ("--chunk-length", 64, "--shard-megabytes", 200_000 / (1 << 20), "--engine", "tokenizers")


@pytest.fixture(scope="module")
def data(real_texts, tmp_path_factory):
    """Two files of many shards, and one between them that is one shard and takes some time."""
    directory = tmp_path_factory.mktemp("many")
    for name in ("2", "10"):
        write_parquet(directory / f"{name}.parquet", real_texts, rows_per_group=40)
    write_parquet(directory / "7.parquet", real_texts * 2, rows_per_group=10_000)
    return directory


@pytest.fixture(scope="module")
def straight(data, tokenizer_path, tmp_path_factory):
    """The dataset of `data`, built in one process."""
    directory = tmp_path_factory.mktemp("straight") / "tokens"
    execution = Execution(engines=EngineSettings("tokenizers"))
    build(str(data), directory, SETTINGS, TokenizerSettings(str(tokenizer_path)), execution)
    return directory


def start(data, out, tokenizer_path, *options):
    return start_cli("preprocess", "tokenize", data, out, "--tokenizer", tokenizer_path, *OPTIONS, *options)


def limited(kind, size, *arguments):
    """What a real process gives that may not have more than `size` of a resource."""
    command = [sys.executable, "-m", "preprocess", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
        text=True,
        preexec_fn=lambda: resource.setrlimit(kind, (size, size)),
        timeout=300,
    )


def shard_of(directory, name):
    index = read_index(directory)
    return next(i for i, shard in enumerate(index.shards) if index.sources[shard.source].path == name)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_bytes_do_not_depend_on_the_number_of_workers(data, straight, tokenizer_path, tmp_path, workers):
    assert (
        main(
            ["tokenize", str(data), str(tmp_path / "out"), "--tokenizer", str(tokenizer_path)]
            + [str(option) for option in (*OPTIONS, "--workers", workers)]
        )
        == 0
    )
    assert contents(tmp_path / "out") == contents(straight)


def test_json_lines_give_the_same_bytes_by_any_number_of_workers_and_through_a_kill(
    real_texts, tokenizer_path, tmp_path
):
    for number in range(8):
        write_jsonl(
            tmp_path / f"in/{number}.jsonl.zst", real_texts[number * 50 : number * 50 + 50], frames=1 + number % 2
        )
    straight = run_cli("preprocess", "tokenize", tmp_path / "in", tmp_path / "one", *OPTIONS, "--workers", 1,
                       "--tokenizer", tokenizer_path)  # fmt: skip
    assert straight.returncode == 0, straight.stderr
    process = start(tmp_path / "in", tmp_path / "two", tokenizer_path, "--workers", 2)
    await_that(lambda: len(list((tmp_path / "two").glob("[0-9]*.json"))) > 1, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "two/index.json").exists()
    resumed = start(tmp_path / "in", tmp_path / "two", tokenizer_path, "--workers", 2)
    out, error = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, error
    assert "shards are already there: writing the others" in out
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_workers_with_the_fastest_engine_give_the_same_arrays_and_index(data, straight, tokenizer_path, tmp_path):
    arguments = ["tokenize", data, tmp_path / "out", "--tokenizer", tokenizer_path, *OPTIONS[:-2], "--workers", 2]
    assert main([*map(str, arguments)]) == 0
    found, known = contents(tmp_path / "out"), contents(straight)
    kept = [name for name in known if name.endswith("npy") or name == "index.json"]
    assert {name: found[name] for name in kept} == {name: known[name] for name in kept}


def test_a_killed_worker_is_noticed_and_its_shard_written_by_another(data, straight, tokenizer_path, tmp_path):
    process = start(data, tmp_path / "out", tokenizer_path, "--workers", 2)
    killed = []

    def kill_one():
        killed.extend(pid for pid in workers_of(process.pid) if has_open(pid, "7.parquet"))
        return killed

    await_that(kill_one, process)
    os.kill(killed[0], signal.SIGKILL)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    number = shard_of(straight, "7.parquet")
    assert f"the worker on shard {number} ended (SIGKILL): trying it again (2 of 3)\n" in out
    assert contents(tmp_path / "out") == contents(straight)


def test_the_death_of_what_workers_are_forked_from_costs_at_most_their_shards(data, straight, tokenizer_path, tmp_path):
    process = start(data, tmp_path / "out", tokenizer_path, "--workers", 2)
    await_that((tmp_path / "out/00001.json").exists, process)
    (parent,) = {parent_of(pid) for pid in workers_of(process.pid)}
    assert parent != process.pid
    os.kill(parent, signal.SIGKILL)
    error = beside_progress(process.communicate(timeout=120)[1])
    assert process.returncode == 0, error
    assert contents(tmp_path / "out") == contents(straight)


def test_a_shard_that_kills_every_worker_is_set_aside_and_the_others_are_written(
    data, straight, tokenizer_path, tmp_path
):
    process = start(data, tmp_path / "out", tokenizer_path, "--workers", 2)
    killed = set()
    while process.poll() is None:
        for pid in workers_of(process.pid) if process.poll() is None else []:
            if pid not in killed and has_open(pid, "7.parquet"):
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
        time.sleep(0.002)
    out, error = process.communicate(timeout=120)
    number, num_shards = shard_of(straight, "7.parquet"), len(read_index(straight).shards)
    assert (process.returncode, len(killed)) == (2, 3)
    assert error == (
        f"error: shard {number} (7.parquet, row groups 0 to 0) ended its worker 3 times (SIGKILL): every other shard "
        "is written; free some memory or move the file away, then run again: it continues\n"
    )
    assert f"the worker on shard {number} ended (SIGKILL): setting it aside\n" in out
    there = {int(path.name.split(".")[0]) for path in (tmp_path / "out").glob("[0-9]*.json")}
    assert there == set(range(num_shards)) - {number}
    assert not (tmp_path / "out/index.json").exists()
    assert run_cli("preprocess", "tokenize", data, tmp_path / "out", *OPTIONS).returncode == 0
    assert contents(tmp_path / "out") == contents(straight)


def test_workers_that_cannot_start_end_the_build(data, tokenizer_path, tmp_path):
    process = start(data, tmp_path / "out", tokenizer_path, "--workers", 1)
    while process.poll() is None:
        for pid in workers_of(process.pid) if process.poll() is None else []:
            if not has_ended(pid):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    error = beside_progress(process.communicate()[1])
    assert process.returncode == 2
    assert error.startswith("error: 3 workers in a row ended before their first shard (SIGKILL): free some memory or")
    assert error.count("\n") == 1


def test_workers_end_with_a_killed_parent_and_the_build_continues(data, straight, tokenizer_path, tmp_path):
    process = start(data, tmp_path / "out", tokenizer_path, "--workers", 2)
    await_that((tmp_path / "out/00001.json").exists, process)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.kill()
    process.wait()
    end_s = time.monotonic() + 5
    while not all(map(has_ended, workers)):
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert run_cli("preprocess", "tokenize", data, tmp_path / "out", *OPTIONS).returncode == 0
    assert contents(tmp_path / "out") == contents(straight)


def test_an_interrupt_ends_all_workers_with_one_line_and_leaves_nothing_half_written(data, tokenizer_path, tmp_path):
    process = start(data, tmp_path / "out", tokenizer_path, "--workers", 2)
    await_that((tmp_path / "out/00001.json").exists, process)
    workers = workers_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "interrupted: run the same command again to continue\n")
    assert len(workers) == 2
    assert all(map(has_ended, workers))
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_an_interrupt_while_workers_start_is_one_line_too(data, tokenizer_path, tmp_path):
    process = start(data, tmp_path / "out", tokenizer_path, "--workers", 2)
    await_that(lambda: workers_of(process.pid), process)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "interrupted: run the same command again to continue\n")


def test_a_build_killed_at_random_moments_ends_in_the_same_bytes(data, straight, tokenizer_path, tmp_path):
    chance, num_kills = random.Random(7), 0
    while num_kills < 8:
        process = start(data, tmp_path / "out", tokenizer_path, "--workers", 2)
        time.sleep(chance.uniform(0.4, 1.2))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            num_kills += 1
        process.communicate()
        if (tmp_path / "out/index.json").exists():  # all of it again, then
            shutil.rmtree(tmp_path / "out")
    options = ("--tokenizer", tokenizer_path, *OPTIONS)
    assert run_cli("preprocess", "tokenize", data, tmp_path / "out", *options).returncode == 0
    assert contents(tmp_path / "out") == contents(straight)


def test_a_mistake_in_the_input_ends_the_build_with_one_line(bad_data, data, tokenizer_path, tmp_path):
    (tmp_path / "in").mkdir()
    for path in (data / "2.parquet", bad_data / "corrupt_page.parquet"):
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    done = run_cli("preprocess", "tokenize", tmp_path / "in", tmp_path / "out", "--tokenizer", tokenizer_path)
    assert (done.returncode, beside_progress(done.stderr).count("\n")) == (2, 1)
    assert "corrupt_page.parquet: row group 0 cannot be read" in done.stderr
    assert not (tmp_path / "out/index.json").exists()


def test_a_bug_in_a_worker_shows_its_traceback(data, tokenizer_path, tmp_path):
    tokenizer = load_tokenizer(tokenizer_path, None)
    plan = make_plan([read_footer(data / "2.parquet", data, "text")], SETTINGS, tokenizer.identity)
    with pytest.raises(RuntimeError, match=r"a worker failed:\n(.*\n)*IndexError"), Progress(1, 1, 0, 0) as progress:
        write_on_workers(Job(tmp_path, data, plan, tokenizer.raw, EngineSettings()), [999], 1, progress)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(data, tokenizer_path, tmp_path):
    options = ("--tokenizer", tokenizer_path, "--workers", 2)
    done = limited(resource.RLIMIT_FSIZE, 400_000, "tokenize", data, tmp_path / "out", *options)
    assert (done.returncode, beside_progress(done.stderr).count("\n")) == (2, 1)
    message = (
        r"out/0000\d\.npy cannot be written \(File too large; at least [\d,]+ bytes are wanted for it\): allow larger"
    )
    assert re.search(message, done.stderr)
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert not list((tmp_path / "out").glob("*.npy"))


@pytest.mark.slow
def test_a_worker_without_memory_says_so(data, tokenizer_path, tmp_path):
    options = ("--tokenizer", tokenizer_path, "--workers", 1, "--chunk-length", 3 << 30)
    done = limited(resource.RLIMIT_AS, 6 << 30, "tokenize", data / "7.parquet", tmp_path / "out", *options)
    assert done.returncode == 2
    assert "shard 0 (7.parquet, row groups 0 to 0) ended its worker 3 times (out of memory): " in done.stderr
    assert beside_progress(done.stderr).count("\n") == 1


def test_the_space_that_shards_take_is_estimated_from_above(small_tokens, small_input):
    index = read_index(small_tokens)
    footers = [read_footer(small_input / source.path, small_input, "text") for source in index.sources]
    plan = make_plan(footers, SETTINGS, index.tokenizer)
    taken = sum(path.stat().st_size for path in small_tokens.glob("[0-9]*"))
    assert taken < needed_bytes(plan.shards, 64, index.tokenizer.vocab_size) < 3 * taken


@pytest.mark.parametrize(
    ("shards", "vocab_size", "wanted"),
    [
        ([], 300, 0),
        ([(10, 1000)], 300, (500 + 10 + 64) * 2 + 11 * 8 + 8192),
        ([(10, 1000)], 70_000, (500 + 10 + 64) * 4 + 11 * 8 + 8192),
        ([(10, 1000), (0, 0)], 300, (500 + 10 + 64) * 2 + 11 * 8 + 64 * 2 + 8 + 2 * 8192),
    ],
)
def test_space_is_half_an_id_for_a_byte_and_all_that_comes_with_it(shards, vocab_size, wanted):
    planned = [PlannedShard(i, 0, i, 1, 0, rows, size) for i, (rows, size) in enumerate(shards)]
    assert needed_bytes(planned, 64, vocab_size) == wanted


def test_too_little_space_is_told_before_anything_is_written(data, tokenizer_path, tmp_path, capsys):
    check_space(tmp_path, 10, 10)
    with pytest.raises(UserError, match=r"has 1\.00 GB free, about 2\.50 GB are wanted for the shards to write: make"):
        check_space(tmp_path, 1_000_000_000, 2_500_000_000)
    options = ("--tokenizer", str(tokenizer_path), "--chunk-length", str(10**15))
    assert main(["tokenize", str(data), str(tmp_path / "out"), *options]) == 2
    assert "GB are wanted for the shards to write: make room or name another directory\n" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("[0-9]*"))


def test_no_workers_are_refused():
    with pytest.raises(ConfigError, match="--workers is 0: at least 1 process is wanted"):
        Execution(workers=0)


class Unstartable:
    """A process whose starting process dies, so many times."""

    def __init__(self, deaths):
        self.deaths, self.started = deaths, 0

    def start(self):
        self.started += 1
        if self.started <= self.deaths:
            raise EOFError


def test_a_worker_that_cannot_be_started_is_tried_again_and_then_told():
    second = Unstartable(TRIES - 1)
    _start(second)
    assert second.started == TRIES
    message = r"^no worker could be started in 3 tries: free some memory, then run again: it continues$"
    with pytest.raises(UserError, match=message):
        _start(Unstartable(TRIES))
