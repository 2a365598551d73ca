"""How far a build is: one live line on a terminal, one plain line per interval anywhere else."""

import sys
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text


class Progress:
    """Counts shards, text and tokens and shows them, on stderr, while it is entered.

    `num_done` and `bytes_done` are what an earlier run has left: they count as done but not into the speed.
    """

    def __init__(self, num_shards: int, text_bytes: int, num_done: int, bytes_done: int, interval_s: float = 10.0):
        self.num_shards, self.text_bytes = num_shards, text_bytes
        self.num_done, self.bytes_done = num_done, bytes_done
        self.new_bytes = self.new_tokens = 0
        self._interval_s = interval_s
        self._started_s = self._printed_s = time.monotonic()
        self._live = Live(get_renderable=self._text, console=Console(stderr=True)) if sys.stderr.isatty() else None

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    @property
    def elapsed_s(self) -> float:
        """Seconds since this run began."""
        return time.monotonic() - self._started_s

    def add(self, text_bytes: int, num_tokens: int) -> None:
        """Count a batch; print a line if one is due."""
        self.new_bytes += text_bytes
        self.new_tokens += num_tokens
        if self._live is None and time.monotonic() - self._printed_s >= self._interval_s:
            self._printed_s = time.monotonic()
            print(self.line(), file=sys.stderr, flush=True)

    def finish_shard(self) -> None:
        """Count a shard as done."""
        self.num_done += 1

    def line(self) -> str:
        """Where the build is, in one line."""
        done, speed = self.bytes_done + self.new_bytes, self.new_bytes / max(self.elapsed_s, 1e-9)
        left = "time left unknown"
        if speed:
            left = f"{timedelta(seconds=round(max(self.text_bytes - done, 0) / speed))} left"
        return (
            f"shards {self.num_done}/{self.num_shards}, text {done / 1e6:,.1f}/{self.text_bytes / 1e6:,.1f} MB, "
            f"{speed / 1e6:.2f} MB/s, {self.new_tokens:,} new tokens, {left}"
        )

    def _text(self) -> Text:
        return Text(self.line())
