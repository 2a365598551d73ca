"""How far a build is: one live line on a terminal, one plain line per interval anywhere else."""

import sys
import time
from collections import deque
from datetime import timedelta
from types import TracebackType

from shared.live import INTERVAL_S, LiveLine

SPEED_WINDOW_S = 60.0


class Progress:
    """Counts shards, text and tokens and shows them, on stderr, while it is entered.

    `num_done` and `bytes_done` are what an earlier run has left: they count as done but not into the speed. Speed and
    time left are those of the last minute.
    """

    def __init__(
        self, num_shards: int, text_bytes: int, num_done: int, bytes_done: int, interval_s: float = INTERVAL_S
    ):
        self.num_shards, self.text_bytes = num_shards, text_bytes
        self.num_done, self.bytes_done = num_done, bytes_done
        self.new_bytes = self.new_tokens = 0
        self._started_s = time.monotonic()
        self._samples = deque([(self._started_s, 0)])  # when, and how many new bytes there were
        self._live = LiveLine(sys.stderr, lambda _: self.line(), interval_s)

    def __enter__(self) -> "Progress":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    @property
    def elapsed_s(self) -> float:
        """Seconds since this run began."""
        return time.monotonic() - self._started_s

    @property
    def speed(self) -> float:
        """Bytes of text per second over the last minute, or over as much of it as this run has had."""
        since_s, before = self._samples[0]
        return (self.new_bytes - before) / max(time.monotonic() - since_s, 1e-9)

    def add(self, text_bytes: int, num_tokens: int) -> None:
        """Count a batch, or with negative numbers take one back; print a line if one is due."""
        self.new_bytes += text_bytes
        self.new_tokens += num_tokens
        self._samples.append((time.monotonic(), self.new_bytes))
        while self._samples[-1][0] - self._samples[0][0] > SPEED_WINDOW_S:
            self._samples.popleft()
        if self._live.is_due():
            self._live.say(self.line())

    def finish_shard(self) -> None:
        """Count a shard as done."""
        self.num_done += 1

    def line(self) -> str:
        """Where the build is, in one line."""
        done, speed = self.bytes_done + self.new_bytes, self.speed
        left = "time left unknown"
        if speed > 0:
            left = f"{timedelta(seconds=round(max(self.text_bytes - done, 0) / speed))} left"
        return (
            f"shards {self.num_done}/{self.num_shards}, text {done / 1e6:,.1f}/{self.text_bytes / 1e6:,.1f} MB, "
            f"{speed / 1e6:.2f} MB/s, {self.new_tokens:,} new tokens, {left}"
        )
