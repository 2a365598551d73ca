from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.mixture import Mixture, whole_weights

mixtures = st.builds(Mixture, st.lists(st.integers(1, 60), min_size=1, max_size=8).map(tuple))
positions = st.integers(0, 10**12)


def sources_of(mixture, num_positions):
    return mixture.at(np.arange(num_positions)).sources


@settings(deadline=None)
@given(mixtures)
def test_every_prefix_has_of_each_source_what_its_weight_asks_for_within_one(mixture):
    weights, period = np.array(mixture.weights), mixture.period
    is_of = sources_of(mixture, 2 * period)[:, None] == np.arange(len(weights))
    counts = np.cumsum(is_of, axis=0)
    asked = np.outer(np.arange(1, 2 * period + 1), weights)  # times the period: no fraction is rounded
    most = Fraction(1) - Fraction(1, max(2 * len(weights) - 2, 2))
    assert int(np.abs(counts * period - asked).max()) <= most * period


@settings(deadline=None)
@given(mixtures, positions)
def test_the_source_and_the_position_there_name_a_position(mixture, position):
    taken = mixture.at(np.array([position]))
    assert mixture.position(int(taken.sources[0]), taken.positions).tolist() == [position]


@settings(deadline=None)
@given(mixtures, positions, st.data())
def test_every_position_of_a_source_is_somewhere_in_the_mixture(mixture, position, data):
    source = data.draw(st.integers(0, len(mixture.weights) - 1))
    taken = mixture.at(mixture.position(source, np.array([position])))
    assert (taken.sources.tolist(), taken.positions.tolist()) == ([source], [position])


@settings(deadline=None)
@given(mixtures, positions, st.integers(0, 300))
def test_counts_are_those_of_the_positions_before(mixture, start, size):
    sources = mixture.at(np.arange(start, start + size)).sources
    before, after = mixture.counts(start), mixture.counts(start + size)
    found = [int((sources == source).sum()) for source in range(len(mixture.weights))]
    assert [late - early for early, late in zip(before, after, strict=True)] == found
    assert sum(before) == start


@settings(deadline=None)
@given(mixtures, positions, st.integers(1, 300))
def test_the_positions_of_each_source_follow_each_other_without_a_gap(mixture, start, size):
    taken, counts = mixture.at(np.arange(start, start + size)), mixture.counts(start)
    for source, count in enumerate(counts):
        mine = taken.positions[taken.sources == source]
        assert mine.tolist() == list(range(count, count + len(mine)))


@pytest.mark.parametrize(
    ("weights", "sources"),
    [
        ((1,), [0, 0, 0]),
        ((1, 1), [0, 1, 0, 1]),
        ((3, 1), [0, 0, 1, 0]),
        ((1, 3), [1, 0, 1, 1]),
    ],
)
def test_a_small_source_comes_in_the_middle_of_its_turn(weights, sources):
    assert sources_of(Mixture(weights), len(sources)).tolist() == sources


@pytest.mark.parametrize(
    ("shares", "weights"),
    [
        ([0.1, 0.2, 0.7], (1, 2, 7)),  # their binary fractions would give others
        ([1, 1, 1], (1, 1, 1)),
        ([0.333, 0.667], (333, 667)),
        ([1e-05, 1.0], (1, 100_000)),
        ([6, 4.0], (3, 2)),
    ],
)
def test_weights_are_the_decimals_that_were_written(shares, weights):
    assert whole_weights(shares) == weights
