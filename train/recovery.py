"""What ends a run early without losing anything: signals, acted on by all ranks together."""

import signal
from types import FrameType

from train.collective import any_rank

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Remembers that a signal asked this rank to stop."""

    def __init__(self) -> None:
        self.received: str | None = None
        for number in SIGNALS:
            signal.signal(number, self._remember)

    def agreed(self) -> bool:
        """True on every rank once any rank was asked; every rank must call it."""
        return any_rank(self.received is not None)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.received = signal.Signals(number).name
