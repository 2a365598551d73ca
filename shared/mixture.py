"""Which source each position of a mixture is of, and which of that source's positions: integers in, integers out.

Sources have whole weights. The order of sources repeats after as many positions as the weights sum to, and any number
of positions from the start on has of each source what its weight asks for, less or more than that by less than one.
Nothing is drawn and nothing is counted up, so any position, and the position of anything, is found at once.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import gcd, lcm
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]


def whole_weights(shares: Sequence[float]) -> tuple[int, ...]:
    """The smallest whole numbers in the same proportions; of a fraction, those of its decimals as it is printed.

    >>> whole_weights([0.7, 0.2, 0.1]), whole_weights([3, 1.5])
    ((7, 2, 1), (2, 1))
    """
    exact = [Fraction(str(share)) for share in shares]
    denominator = lcm(*(share.denominator for share in exact))
    weights = [share.numerator * (denominator // share.denominator) for share in exact]
    return tuple(weight // gcd(*weights) for weight in weights)


class Taken(NamedTuple):
    """What some positions of a mixture are."""

    sources: Numbers
    positions: Numbers
    """Each in its source, which it is the next unread one of there."""


@dataclass(frozen=True)
class Mixture:
    """Sources of such whole weights, each above zero, one behind the other by turns.

    >>> Mixture((3, 1)).at(np.arange(8))
    Taken(sources=array([0, 0, 1, 0, 0, 0, 1, 0]), positions=array([0, 1, 0, 2, 3, 4, 1, 5]))
    """

    weights: tuple[int, ...]

    @cached_property
    def period(self) -> int:
        """Positions after which the order of sources repeats."""
        return sum(self.weights)

    def at(self, positions: Numbers) -> Taken:
        """The source of each position and the position there."""
        periods, places = np.divmod(positions, self.period)
        sources = self._sources[places]
        return Taken(sources, periods * self._sizes[sources] + self._before[places])

    def position(self, source: int, positions: Numbers) -> Numbers:
        """Where in the mixture some positions of a source are: the inverse of `at`."""
        periods, numbers = np.divmod(positions, self.weights[source])
        return periods * self.period + self._places[source][numbers]

    def counts(self, num_positions: int) -> tuple[int, ...]:
        """How many of the first `num_positions` are of each source.

        >>> Mixture((3, 1)).counts(6)
        (5, 1)
        """
        periods, place = divmod(num_positions, self.period)
        begun = (int(np.searchsorted(places, place)) for places in self._places)
        return tuple(periods * weight + count for weight, count in zip(self.weights, begun, strict=True))

    @cached_property
    def _sizes(self) -> Numbers:
        return np.array(self.weights, np.int64)

    @cached_property
    def _sources(self) -> Numbers:
        """The source at each place of a period."""
        return np.fromiter(_turns(self.weights), np.int64, self.period)

    @cached_property
    def _places(self) -> list[Numbers]:
        """The places of each source in a period, ascending."""
        return [np.flatnonzero(self._sources == source) for source in range(len(self.weights))]

    @cached_property
    def _before(self) -> Numbers:
        """How often the source at each place of a period came before that."""
        before = np.empty(self.period, np.int64)
        for places in self._places:
            before[places] = np.arange(len(places))
        return before


def _turns(weights: tuple[int, ...]) -> Iterator[int]:
    """The source of each position of one period, so that no prefix is off by more than 1 - 1 / (2 K - 2) of K sources.

    Each turn of each source has a first and a last position at which it may come without a prefix being off by more.
    There is an order in which all do, so the one that always takes the turn that must come soonest is one.

    Source: R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32, 1980; that the soonest first fails
    only where all fail: J. R. Jackson, 1955, for jobs of one unit with whole release times and deadlines.
    """
    period, slack = sum(weights), max(2 * len(weights) - 2, 1)
    turns = sorted(
        (-(-(slack * turn + 1) * period // (slack * weight)), source, turn)
        for source, weight in enumerate(weights)
        for turn in range(weight)
    )
    waiting: list[tuple[int, int]] = []  # last position, source
    released = 0
    for position in range(1, period + 1):
        while released < period and turns[released][0] <= position:
            _, source, turn = turns[released]
            last = (slack * turn + slack - 1) * period // (slack * weights[source]) + 1
            heapq.heappush(waiting, (last, source))
            released += 1
        last, source = heapq.heappop(waiting)
        assert last >= position, "the chairman assignment problem has a solution"
        yield source
