"""What a run writes about itself: a JSON line for each step, one for each event; a console shows them meanwhile.

Only rank 0 writes, but for an event that another rank alone knows of. Each step stands in metrics.jsonl once, however
often the run was killed and continued. A full disk does not end a run here: lines wait in memory until there is room.
"""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shared.directories import exists
from shared.errors import StorageError
from shared.files import read_bytes
from shared.storage import append_line, write_file
from train.console import Console
from train.linear import is_plain_fp32, lanes, product
from train.records import EVENTS_NAME, METRICS_NAME, read_metrics


class RunLog:
    """metrics.jsonl and events.jsonl of one run, and its console."""

    def __init__(self, directory: Path, is_writer: bool, console: Console) -> None:
        self.directory = directory
        self.metrics_path = directory / METRICS_NAME
        self.events_path = directory / EVENTS_NAME
        self.is_writer, self.console = is_writer, console
        self.on_step: Callable[[], None] = lambda: None  # called on every rank: a profiler's
        self.on_rewind: Callable[[int], None] = lambda _: None  # of loggers
        self._newest: dict[str, Any] = {}
        self.undone: dict[str, float] = {"undone": 0, "undone_s": 0.0}
        """How many steps the last `rewind` forgot, and the time that they had taken."""
        self._waiting: list[tuple[Path, str]] = []
        self._writing = threading.RLock()

    def rewind(self, step: int) -> None:
        """Drop the lines of steps after `step`, which will be run again, and a line that a kill cut short."""
        if self.is_writer and exists(self.metrics_path):
            self.undone = self.done_since(step)
            lines = read_bytes(self.metrics_path).splitlines(keepends=True)
            kept = [line for line in lines if line.endswith(b"\n") and _is_until(line, step)]
            write_file(self.metrics_path, kept)
            self._newest = json.loads(kept[-1]) if kept else {}
        after = [entry for entry in self._waiting if entry[0] == self.metrics_path and not _is_until(entry[1], step)]
        self._waiting = [entry for entry in self._waiting if entry not in after]
        self.on_rewind(step)

    def done_since(self, step: int) -> dict[str, float]:
        """How many steps after `step` are in metrics.jsonl, and the time that they took, on the rank that writes."""
        seconds = []
        if self.is_writer and exists(self.metrics_path):
            for line in reversed(read_bytes(self.metrics_path).splitlines(keepends=True)):
                if line.endswith(b"\n"):
                    record = json.loads(line)
                    if record["step"] <= step:
                        break
                    seconds.append(record.get("step_s", 0.0))
        return {"undone": len(seconds), "undone_s": round(sum(seconds), 3)}

    def lacks(self, key: str, step: int) -> bool:
        """Whether the newest record in metrics.jsonl is that of `step` and has no `key`; False where nobody writes."""
        return self._newest.get("step") == step and key not in self._newest

    def complete(self, values: dict[str, Any]) -> None:
        """Add `values` to the newest record."""
        if self.is_writer:
            self.flush()
            self._newest |= values
            lines = read_bytes(self.metrics_path).splitlines(keepends=True)
            write_file(self.metrics_path, [*lines[:-1], json.dumps(self._newest).encode() + b"\n"])

    def recent(self, count: int) -> list[dict[str, Any]]:
        """The records of the last steps, on the rank that writes them."""
        written = read_metrics(self.directory) if self.is_writer and self.metrics_path.exists() else []
        return [*written, *(json.loads(line) for path, line in self._waiting if path == self.metrics_path)][-count:]

    def step(self, record: dict[str, Any], is_last: bool) -> None:
        """Append the record of one step, and show it."""
        self.on_step()
        if not self.is_writer:
            return
        self._append(self.metrics_path, json.dumps(record))
        self._newest = record
        self.console.outlook.stepped(record, time.monotonic())
        self.console.step(record, is_last)

    def event(self, name: str, **details: Any) -> None:
        """Append an event, and say it."""
        if self.is_writer:
            self.tell(name, **details)

    def tell(self, name: str, **details: Any) -> None:
        """The same on any rank and thread, for what one of them alone knows."""
        event = {"time": time.time(), "event": name, **details}
        self._append(self.events_path, json.dumps(event))
        self.console.event(event)

    def flush(self) -> None:
        """Write the lines that wait.

        Raises: StorageError if there is no room yet.
        """
        with self._writing:
            while self._waiting:
                append_line(*self._waiting[0])
                del self._waiting[0]

    def _append(self, path: Path, line: str) -> None:
        """Append a line to a file, after those that wait; it waits, too, if there is no room."""
        with self._writing:
            is_first = not self._waiting
            self._waiting.append((path, line))
            try:
                self.flush()
            except StorageError as error:
                if is_first:
                    self.console.note(f"warning: {error}; the run goes on, and its lines wait in memory")


def _is_until(line: bytes | str, step: int) -> bool:
    recorded: int = json.loads(line)["step"]
    return recorded <= step


def measured_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square matrix product on `device`: what mfu is a share of.

    On a CPU it is by the library that the model multiplies with: a slower one would make the share look larger.
    """
    size, tries = (8192, 10) if device.type == "cuda" else (1024, 5)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    synchronize: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    is_onednn = lanes() > 0 and is_plain_fp32(matrix, matrix)
    multiply = product if is_onednn else torch.matmul
    seconds = list[float]()
    for _ in range(tries + 1):  # the first warms up; where bfloat16 is emulated one takes seconds
        if sum(seconds[1:]) > 1:
            break
        synchronize()
        began = time.perf_counter()
        multiply(matrix, matrix)
        synchronize()
        seconds.append(time.perf_counter() - began)
    return 2.0 * size**3 / min(seconds[1:])
