"""SIGKILLs of all processes of a command, at moments that are drawn, and what it has made when it came to its end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

from shared.directories import written_name
from shared.storage import sha256_file
from tests.helpers import REPOSITORY

MARK = "ARGONNE_CHAOS"  # in the environment of all processes of a command, whatever session or group they are in
MOST_IN_A_ROW = 5
PATIENCE_S = 300.0


@dataclass
class Result:
    """How often something was tried, and every time that something was wrong after."""

    name: str
    tries: int = 0
    problems: list[str] = field(default_factory=list)
    notes: str = ""
    seconds: float = 0.0


class Command:
    """A command line as a family of real processes."""

    def __init__(self, *arguments: object) -> None:
        self._mark, self._said = uuid.uuid4().hex, TemporaryFile()  # noqa: SIM115 (as long as the command)
        self._process = subprocess.Popen(
            list(map(str, arguments)),
            cwd=REPOSITORY,
            env={**os.environ, MARK: self._mark, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,
            stdout=self._said,
            stderr=self._said,
        )

    def has_ended(self, within_s: float) -> bool:
        """Whether it has come to its end after so long."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(within_s)
        return self._process.poll() is not None

    def kill(self) -> None:
        """SIGKILL all of it: again until there is none, as a process may just be starting another."""
        while pids := self._family():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()
            time.sleep(0.002)

    def finish(self) -> tuple[int, str]:
        """Exit code and all that it said, once it has ended; -1 if it does not in time."""
        code = self._process.returncode if self.has_ended(PATIENCE_S) else -1
        self.kill()  # what has not ended with it
        self._said.seek(0)
        return code, self._said.read().decode(errors="replace")

    def _family(self) -> list[int]:
        found, mark = [], f"{MARK}={self._mark}".encode()
        for path in Path("/proc").iterdir():
            with suppress(OSError):
                if path.name.isdigit() and mark in (path / "environ").read_bytes():
                    found.append(int(path.name))
        return found


def kill_at_random(
    name: str,
    start: Callable[[], Command],
    begin: Callable[[], None],
    problems_now: Callable[[], Sequence[str]],
    kills: int,
    seed: int = 0,
) -> Result:
    """What is wrong with what a command has made, each time that it ended well after up to five kills in a row.

    `begin` removes what it has made; a moment is drawn between the start and the time that the whole of it takes.
    """
    drawn, result, whole_s, in_a_row, endings = random.Random(seed), Result(name), 0.0, 0, 0
    while result.tries < kills or in_a_row:
        command, began_s = start(), time.monotonic()
        may_kill = whole_s and result.tries < kills and in_a_row < MOST_IN_A_ROW
        if may_kill and not command.has_ended(drawn.uniform(0, whole_s)):
            command.kill()
            result.tries, in_a_row = result.tries + 1, in_a_row + 1
            if sys.stderr.isatty():
                print(f"\r{name}: {result.tries} of {kills}", end="", file=sys.stderr, flush=True)
            continue
        code, said = command.finish()
        result.problems += [f"after {in_a_row} kills: {problem}" for problem in problems_now()]
        if code:
            result.problems.append(f"after {in_a_row} kills: exit code {code}: {said[-1000:]}")
            return result
        whole_s, in_a_row, endings = whole_s or time.monotonic() - began_s, 0, endings + 1
        begin()
    result.notes = f"{endings} endings: every byte"
    return result


def build_command(data: Path, tokenizer: Path, out: Path, length: int) -> Command:
    """A build by two workers, and a packing of it, in one group of processes."""
    program = f'"{sys.executable}" -m preprocess'
    return Command(
        "sh",
        "-c",
        f'{program} tokenize "{data}" "{out}" --tokenizer "{tokenizer}" --chunk-length {length} --workers 2 '
        f"--shard-megabytes 0.02 --engine tokenizers --drop-duplicates && "
        f'{program} pack "{out}" --length {length} --workers 2',
    )


def train_command(tokens: Path, run: Path, *options: object) -> Command:
    """Two ranks that shard a small model and save it every third step."""
    return Command(
        *(sys.executable, "-m", "train", "run", tokens, run, "--strategy", "fsdp", "--nproc", 2),
        *("--model.hidden-size", 32, "--model.num-hidden-layers", 2, "--model.num-attention-heads", 2),
        *("--model.intermediate-size", 64, "--model.hidden-dropout", 0.1, "--data.sequence-length", 32),
        *("--data.global-batch", 4, "--data.validation-chunks", 8, "--training.microbatch", 2),
        *("--training.total-steps", 24, "--checkpoint.every", 3, "--optimizer.warmup-steps", 3),
        *options,
    )


def differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Names whose values differ, or that one of the two does not have."""
    return [f"{name} differs" for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]


def saved(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first.

    What a killed save has left is none; it is there for ten minutes, in case somebody still writes it.
    """
    return [path for path in sorted(run.glob("checkpoints/step-*")) if written_name(path.name) is None]


def trained(run: Path) -> dict[str, str]:
    """What a finished run has learned and from what: the files of its checkpoints, and every step's loss and digest."""
    paths = (
        path for directory in saved(run) for path in (*sorted(directory.glob("*.distcp")), directory / ".metadata")
    )
    files = {str(path.relative_to(run)): sha256_file(path) for path in paths}
    records = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    steps = [(f"step {record['step']}", f"{record['loss']!r} {record['data_digest']}") for record in records]
    assert len(dict(steps)) == len(steps), "a step is told twice"
    return {**files, **dict(steps)}
