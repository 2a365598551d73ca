"""A rank that does not move is named and all ranks end; one that is only slow, or was suspended, is not ended."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY, run_cli
from tests.train_helpers import MODEL, random_tokens, write_tokens
from train.heartbeat import HEARTBEATS_NAME, read_heartbeats
from train.outcome import HUNG
from train.records import read_metrics
from train.status import status
from train.watchdog import MARK_NAME

TIMEOUT_S = 6.0
SETTINGS = {
    "data": {"sequence_length": 16, "global_batch": 4, "validation_chunks": 4},
    "training": {"total_steps": 2000, "microbatch": 2},
    "checkpoint": {"every": 1000},
    "recovery": {"hang_timeout_s": TIMEOUT_S},
}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dataset") / "tokens"
    write_tokens(directory, [random_tokens(40_000)], vocab_size=64)
    return directory


def recipe_file(directory: Path, **changes) -> Path:
    """A small recipe as a file; a change is named section__field."""
    tables = {name: dict(table) for name, table in {"model": MODEL, **SETTINGS}.items()}
    for name, value in changes.items():
        section, _, field = name.partition("__")
        tables.setdefault(section, {})[field] = value
    lines = []
    for section, table in tables.items():
        lines += [f"[{section}]", *(f"{field} = {json.dumps(value)}" for field, value in table.items())]
    path = directory / "small.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass
class Ranks:
    """Two ranks as this process started them."""

    run: Path
    processes: list[subprocess.Popen]

    def output(self) -> str:
        return "".join((self.run.parent / f"out-{rank}").read_text() for rank in range(2))

    def wait_for_step(self, step: int) -> None:
        deadline_s = time.monotonic() + 100
        while min((record.step for record in read_heartbeats(self.run / HEARTBEATS_NAME)), default=0) < step:
            assert all(process.poll() is None for process in self.processes), self.output()
            assert time.monotonic() < deadline_s, self.output()
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)

    def codes(self, timeout_s: float = 100) -> list[int]:
        """How all have ended."""
        return [process.wait(timeout_s) for process in self.processes]

    def events(self, name: str) -> list[dict]:
        path = self.run / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == name]


@pytest.fixture
def start(tokens, tmp_path):
    """Starts two ranks with a fault in one of them; none is left when the test has ended."""
    started = []

    def start_ranks(place: str, fault: str, rank: int, step: int, *options: str, **changes) -> Ranks:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        recipe = recipe_file(tmp_path, **changes)
        words = [place, fault, rank, step, tokens, tmp_path / "run", "--recipe", recipe, *options]
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        for number in range(2):
            with open(tmp_path / f"out-{number}", "w") as out:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.faulty_rank", *map(str, words)],
                    cwd=REPOSITORY,
                    env={**os.environ, **environment, "RANK": str(number), "LOCAL_RANK": str(number)},
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            started.append(process)
        assert len(started) == 2
        return Ranks(tmp_path / "run", started)

    yield start_ranks
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_a_rank_that_is_stopped_is_named_and_ended_in_time_and_nobody_is_left(start):
    ranks = start("forward", "none", 1, 0)
    ranks.wait_for_step(20)
    ranks.processes[1].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert ranks.codes() == [HUNG, -signal.SIGKILL], ranks.output()
    assert time.monotonic() - began < TIMEOUT_S + 1
    (hang,) = ranks.events("hang")
    assert hang["ranks"] == [1]
    pid = ranks.processes[1].pid
    assert (
        f"rank 1 (pid {pid} on {socket.gethostname()}) does not run (stopped, dead or cut off), in " in hang["problem"]
    )
    assert f"hang: {hang['problem']}\n" in ranks.output()
    assert "in take_step" in (ranks.run / "stacks" / "rank-0.txt").read_text()
    told = status(ranks.run).splitlines()
    assert told[-1] == f"hang: {hang['problem']}"
    assert re.match(rf"   1  \S+ +{pid} ", told[2])


def test_a_stuck_rank_is_named_and_torchrun_brings_the_run_back(tokens, tmp_path):
    changes = {"training__total_steps": 60, "checkpoint__every": 10, "recovery__hang_timeout_s": TIMEOUT_S}
    recipe = recipe_file(tmp_path, **changes)
    command = [*("--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.1"), "-m", "tests.faulty_rank"]
    command += ["optimizer", "receive", "0", "25", str(tokens), str(tmp_path / "run"), "--recipe", str(recipe)]
    finished = run_cli("torch.distributed.run", *command, OMP_NUM_THREADS="1")
    assert finished.returncode == 0, finished.stderr
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (hang,) = (event for event in events if event["event"] == "hang")
    assert hang["ranks"] == [0]
    assert re.search(
        r"^rank 0 .* does not get on in optimize of step 25 since \d s; the others wait in agree of step 25$",
        hang["problem"],
    )
    assert "in receive" in (tmp_path / "run" / "stacks" / "rank-0.txt").read_text()
    assert "in gather_rows" in (tmp_path / "run" / "stacks" / "rank-1.txt").read_text()
    assert [event["step"] for event in events if event["event"] == "start"] == [0, 20]
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == list(range(1, 61))
    told = run_cli("train", "status", tmp_path / "run").stdout
    assert [line.split()[-1] for line in told.splitlines()] == ["process", "ended", "ended"]


def test_a_slow_rank_is_named_in_20_steps_and_a_suspended_job_is_not_hung(start):
    changes = {"training__total_steps": 80, "recovery__hang_timeout_s": 3.0}
    ranks = start("forward", "slow", 1, 30, **changes)
    ranks.wait_for_step(10)
    ranks.signal(signal.SIGSTOP)
    time.sleep(4)
    ranks.signal(signal.SIGCONT)
    assert ranks.codes() == [0, 0], ranks.output()
    assert not ranks.events("hang")
    assert not (ranks.run / HEARTBEATS_NAME / MARK_NAME).exists()
    (straggler,) = ranks.events("straggler")
    assert straggler["rank"] == 1
    assert 30 < straggler["step"] <= 50
    assert re.match(r"rank 1 on \S+ takes 0\.1\S* s in a step for what it does alone, the median", straggler["problem"])


@pytest.mark.long
def test_a_hang_ends_within_the_timeout_that_recipes_have(start):
    ranks = start("forward", "none", 1, 0, recovery__hang_timeout_s=60.0)
    ranks.wait_for_step(20)
    ranks.processes[0].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert ranks.codes() == [-signal.SIGKILL, HUNG], ranks.output()
    assert time.monotonic() - began < 60
    assert ranks.events("hang")[0]["ranks"] == [0]


HANGS = [
    ("setup", "sleep", 0, 0),
    ("setup", "stop", 1, 0),
    ("fetch", "loop", 0, 9),
    ("fetch", "stop", 1, 7),
    ("reader", "loop", 0, 9),
    ("reader", "sleep", 1, 9),
    ("forward", "loop", 0, 6),
    ("forward", "sleep", 1, 12),
    ("forward", "stop", 0, 10),
    ("forward", "stop", 1, 31),
    ("forward", "lock", 0, 8),
    ("forward", "lock", 1, 8),
    ("optimizer", "loop", 1, 5),
    ("optimizer", "receive", 0, 14),
    ("optimizer", "receive", 1, 14),
    ("optimizer", "stop", 0, 3),
    ("validate", "sleep", 1, 20),
    ("validate", "stop", 0, 20),
    ("save", "stop", 1, 20),
    ("save", "sleep", 0, 20),
]


@pytest.mark.long
@pytest.mark.parametrize(("place", "fault", "rank", "step"), HANGS)
def test_any_rank_that_hangs_anywhere_is_named(start, place, fault, rank, step):
    timeout_s = 2.0 if place == "setup" else TIMEOUT_S
    changes = {"training__validate_every": 10, "checkpoint__every": 10, "recovery__hang_timeout_s": timeout_s}
    ranks = start(place, fault, rank, step, **changes)
    codes = ranks.codes(300)
    assert codes[1 - rank] == HUNG, ranks.output()
    assert codes[rank] == (-signal.SIGKILL if fault in ("stop", "lock") else HUNG), ranks.output()
    (hang,) = ranks.events("hang")
    assert hang["ranks"] == [rank], hang
    assert (ranks.run / "stacks" / f"rank-{1 - rank}.txt").exists()
