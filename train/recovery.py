"""What ends a run early without losing anything: signals and the end of its job, acted on by all ranks together."""

import os
import time

from train.collective import any_rank
from train.deadline import Deadline, Pace
from train.signals import Signals


class StopRequest:
    """Whether a run is asked to stop: by a signal to any rank, the end of its job, or the end of what launched it."""

    def __init__(self, signals: Signals | None = None) -> None:
        self.signals = signals or Signals()
        self.pace = Pace(0.0)
        self.deadline: Deadline | None = None  # known to rank 0 alone
        self.reason: str | None = None
        """Why this rank wants to stop, once it does."""

    def agreed(self) -> bool:
        """True on every rank once any rank was asked; every rank must call it."""
        self.reason = self.reason or self._asked()
        return any_rank(self.reason is not None)

    def _asked(self) -> str | None:
        if self.signals.received:
            return self.signals.received[0].name
        if os.getppid() != self.signals.parent:
            return "its launcher is gone"
        if self.deadline is not None and self.deadline.is_last_moment(time.monotonic(), self.pace):
            return f"the job ends ({self.deadline.source})"
        return None

    def too_late(self) -> str | None:
        """What to say if the job ends before a single step could be done and saved; None if there is time."""
        if self.deadline is None or not self.deadline.is_last_moment(now_s := time.monotonic(), self.pace):
            return None
        return (
            f"the job ends in {max(self.deadline.end_s - now_s, 0):.0f} s ({self.deadline.source}), two saves and "
            f"recovery.deadline_margin_s take {self.pace.needed_s(self.deadline.margin_s):.0f} s: ask for more time"
        )
