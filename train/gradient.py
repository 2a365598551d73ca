"""What a step's forward and backward passes came to, and what it means if that is not finite."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

TOLERANCE = 1e-3
"""Of two results of the same step: a device that adds up in any order gives no closer ones."""


@dataclass(frozen=True)
class Gradient:
    """Loss and gradient norm of a step; every rank has the same numbers."""

    loss: float
    norm: float
    source_losses: Mapping[str, float] = field(default_factory=dict)
    """`loss_NAME` of each source of a mixture."""

    @property
    def is_finite(self) -> bool:
        """Whether the weights may be changed by it."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)

    def __str__(self) -> str:
        return f"loss {self.loss:.4g} and gradient norm {self.norm:.4g}"


def why_not_finite(first: Gradient, again: Gradient) -> str:
    """What made `first` not finite, from what the same batch gave `again`.

    The same weights and the same batch give the same numbers, if the hardware does as it should.

    >>> why_not_finite(Gradient(math.nan, math.nan), Gradient(math.nan, math.nan))
    'the data or the model'
    >>> why_not_finite(Gradient(math.nan, math.nan), Gradient(2.0, 1.0))
    'the hardware'

    Source: Megatron-LM's rerun state machine.
    """
    are_same = _is_same(first.loss, again.loss) and _is_same(first.norm, again.norm)
    return "the data or the model" if are_same else "the hardware"


def _is_same(one: float, other: float) -> bool:
    return (math.isnan(one) and math.isnan(other)) or math.isclose(one, other, rel_tol=TOLERANCE)
