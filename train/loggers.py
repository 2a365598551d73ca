"""The loggers of a run as rank 0 has them: processes that follow it, never waited for, told of if they fail."""

import importlib.util
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal

from shared.errors import ConfigError
from train.follow import LOGGERS_NAME, Follower, Mark
from train.signals import held_back

if TYPE_CHECKING:
    from train.metrics import RunLog

Logger = Literal["tensorboard", "wandb", "trackio"]
FLUSH_S = 10.0
"""That all of them together have at the end of a run."""


def check_loggers(names: Sequence[Logger]) -> None:
    """Raises: ConfigError if the package of one is not installed."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a mere directory of that name, as W&B makes one, is no package
            raise ConfigError(f"loggers: {name} is not installed: pip install 'argonne[{name}]', or leave it out")


class Loggers:
    """The followers of a run that is at `step`, while it is entered; what it gives tells them of steps to be redone."""

    def __init__(self, log: "RunLog", names: Sequence[str], step: int, module: str = "train.follow") -> None:
        self.log, self.names, self.step, self.module = log, list(dict.fromkeys(names)), step, module
        self.directory = log.directory / LOGGERS_NAME
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []
        self._late: set[str] = set()

    def __enter__(self) -> Callable[[int], None]:
        for name in self.names if self.log.is_writer else ():
            self.directory.mkdir(exist_ok=True)
            with open(self._said(name), "ab") as said:
                self._processes[name] = self._start(name, said)
            self._threads.append(threading.Thread(target=self._await, args=(name,), daemon=True))
            self._threads[-1].start()
        return self._rewound

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            _stdin(process).close()
        if kind is not None:  # they read to the end of the file and go
            return
        end_s = time.monotonic() + FLUSH_S
        for name, process in self._processes.items():
            try:
                process.wait(max(end_s - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                self._late.add(name)
                process.kill()
        for thread in self._threads:
            thread.join()

    def _rewound(self, step: int) -> None:
        """Steps after `step` will be done again."""
        for process in self._processes.values():
            try:
                _stdin(process).write(b"rewind %d\n" % step)
            except BrokenPipeError:
                continue  # it has ended, which its thread tells

    def _start(self, name: str, said: IO[bytes]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", self.module, str(self.log.directory), name, str(self.step)]
        with held_back():  # what asks the run to stop is not for a follower, which ends when the run does
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said, bufsize=0)

    def _await(self, name: str) -> None:
        """Tell how a follower ended, unless it ended well."""
        code = self._processes[name].wait()
        path = self._said(name)
        if name in self._late:
            mark = Mark(self.directory / name).step
            behind = sum(record["step"] > mark for record in Follower(self.log.metrics_path).new())
            problem = f"{name} did not get its last {behind} steps in {FLUSH_S:.0f} s: it gets them at the next start"
        elif code:
            ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            last = (path.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            problem = f"{name} {ended} ({last[:500]}): the run goes on without it, see {path}"
        else:
            return
        self.log.tell("logger", logger=name, problem=problem)

    def _said(self, name: str) -> Path:
        return self.directory / f"{name}.log"


def _stdin(process: "subprocess.Popen[bytes]") -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin
