"""When a run will be at its last step, from what its steps, validations and saves took lately."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from train.config import RunConfig

KEPT = 64
"""Steps, validations and saves of which the median counts: a run that got slower is soon known as slower."""


def _recent() -> deque[float]:
    return deque(maxlen=KEPT)


@dataclass
class Outlook:
    """How long what is left will take; it is told of every step."""

    last_step: int
    """Of this start of the run."""
    validate_every: int | None = None
    save_every: int | None = None
    is_validated_last: bool = False
    deadline_s: float | None = None
    """When the job ends, of time.monotonic(); None if nobody knows."""
    step: int = 0
    _now_s: float | None = None
    _steps_s: deque[float] = field(default_factory=_recent)
    _validations_s: deque[float] = field(default_factory=_recent)
    _saves_s: deque[float] = field(default_factory=_recent)
    _first_s: float = 0.0

    @classmethod
    def of(cls, config: RunConfig, last_step: int) -> "Outlook":
        """Of a run that goes to `last_step`."""
        is_validated_last = last_step == config.total_steps
        return cls(last_step, config.training.validate_every, config.checkpoint.every, is_validated_last)

    def stepped(self, record: Mapping[str, Any], now_s: float) -> None:
        """A step and its validation have ended; what else has passed since the last one was its save.

        The first step, in which blocks are compiled, counts only until there is another.
        """
        if self._now_s is None:
            self._first_s = record["step_s"]
        else:
            self._steps_s.append(record["step_s"])
            self._spent(max(now_s - self._now_s - record["step_s"], 0.0), "validation_loss" in record)
        self.step, self._now_s = record["step"], now_s

    def _spent(self, between_s: float, is_validated: bool) -> None:
        was_saved = self.save_every is not None and self.step % self.save_every == 0
        if is_validated:
            self._validations_s.append(max(between_s - was_saved * _usual(self._saves_s), 0.0))
        elif was_saved:
            self._saves_s.append(between_s)

    def left_s(self, now_s: float) -> float:
        """Seconds until the last step is done and saved; a validation or save that was not seen yet counts as none.

        >>> outlook = Outlook(last_step=10, validate_every=4, save_every=5)
        >>> outlook.stepped({"step": 1, "step_s": 60.0}, 0.0), outlook.stepped({"step": 2, "step_s": 2.0}, 2.0)
        (None, None)
        >>> outlook.left_s(2.0), outlook.left_s(3.0)
        (16.0, 15.0)
        >>> outlook.stepped({"step": 3, "step_s": 2.0}, 4.0)
        >>> outlook.stepped({"step": 4, "step_s": 2.0, "validation_loss": 1.0}, 9.0)  # of which 3 s to validate
        >>> outlook.left_s(9.0)  # six steps and a validation
        15.0
        """
        if self._now_s is None:
            return 0.0
        step_s = median(self._steps_s) if self._steps_s else self._first_s
        left = (self.last_step - self.step) * step_s
        left += self._times(self.validate_every, self.is_validated_last) * _usual(self._validations_s)
        left += self._times(self.save_every, is_last=True) * _usual(self._saves_s)
        return max(left - (now_s - self._now_s), 0.0)

    def deadline_left_s(self, now_s: float) -> float | None:
        """Seconds until the job ends; None if nobody knows."""
        return None if self.deadline_s is None else max(self.deadline_s - now_s, 0.0)

    def _times(self, every: int | None, is_last: bool) -> int:
        """How often something is still done that is done after every so many steps, and perhaps after the last."""
        if self.step >= self.last_step:
            return 0
        if every is None:
            return int(is_last)
        return self.last_step // every - self.step // every + (is_last and self.last_step % every > 0)


def _usual(seconds: deque[float]) -> float:
    return median(seconds) if seconds else 0.0
