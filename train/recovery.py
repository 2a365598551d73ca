"""What ends a run early without losing anything: signals, acted on by all ranks together, and steps that went bad."""

import math
import signal
from types import FrameType

from shared.errors import UserError
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


def require_finite(step: int, loss: float, grad_norm: float) -> None:
    """Raises: UserError if a step's loss or gradient is not finite; every rank has the same numbers."""
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise UserError(
            f"step {step}: loss {loss}, gradient norm {grad_norm}: stopped before the weights changed; lower "
            "optimizer.learning_rate or look at the data, then start again: the newest checkpoint is used"
        )
