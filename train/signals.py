"""Signals that ask a run to stop, remembered from the first moment of a process on: imports nothing that takes time."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Signals:
    """The signals that came since it was made, in their order; none of them ends the process any more."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self.parent = os.getppid()
        for number in SIGNALS:
            signal.signal(number, self._remember)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def ignore(self) -> None:
        """From here on none counts: while Python shuts down it gives them back their default, which is to kill."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received.append(signal.Signals(number))


@contextmanager
def held_back() -> Iterator[None]:
    """A process that is started inside gets its signals when it makes its `Signals`, and none is lost before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
