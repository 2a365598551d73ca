from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shared.cursor import Cursor, ReadingOrder, permute, rank_positions, unpermute

SHARDS = (5, 1)
seeds = st.none() | st.integers(0, 2**63)


@st.composite
def reading_orders(draw, seeds=seeds):
    """Any order with at least one training chunk; shards without a chunk are common."""
    shard_chunks = tuple(draw(st.lists(st.integers(0, 60), min_size=1, max_size=8)))
    assume(sum(shard_chunks) > 0)
    return ReadingOrder(shard_chunks, draw(st.integers(0, sum(shard_chunks) - 1)), draw(seeds))


@pytest.mark.parametrize(
    ("position", "cursor"),
    [
        (0, (0, 0, 0)),
        (4, (0, 0, 4)),
        (5, (0, 1, 0)),  # first chunk of the second shard
        (6, (1, 0, 0)),  # a new epoch starts at the front
        (6 * 10**9 + 5, (10**9, 1, 0)),
    ],
)
def test_positions_and_cursors_of_two_shards(position, cursor):
    order = ReadingOrder(SHARDS)
    assert order.cursor(position) == Cursor(*cursor)
    assert order.position(Cursor(*cursor)) == position


@pytest.mark.parametrize(
    ("position", "cursor"),
    [
        (3, (0, 0, 3)),
        (4, (1, 0, 0)),  # the last chunk of the first shard and the second shard are held out
    ],
)
def test_held_out_chunks_are_taken_from_the_end_of_an_epoch(position, cursor):
    order = ReadingOrder(SHARDS, num_held_out=2)
    assert order.num_training == 4
    assert order.cursor(position) == Cursor(*cursor)
    assert order.position(Cursor(*cursor)) == position


@settings(deadline=None)
@given(reading_orders(), st.integers(0, 10**12))
def test_position_and_cursor_are_inverse(order, position):
    cursor = order.cursor(position)
    assert order.position(cursor) == position
    assert 0 <= cursor.offset < order.shard_chunks[cursor.shard]


@settings(deadline=None)
@given(reading_orders(), st.integers(0, 3), st.data())
def test_cursor_and_position_are_inverse(order, epoch, data):
    chunk = data.draw(st.integers(0, order.num_training - 1))
    shards, offsets = order.locate(np.array([chunk]))
    cursor = Cursor(epoch, int(shards[0]), int(offsets[0]))
    assert order.cursor(order.position(cursor)) == cursor


@settings(deadline=None)
@given(reading_orders())
def test_each_epoch_reads_every_training_chunk_exactly_once_and_no_held_out_one(order):
    for epoch in range(3):
        start = epoch * order.num_training
        chunks = order.chunks(range(start, start + order.num_training))
        assert sorted(chunks.tolist()) == list(range(order.num_training))


@settings(deadline=None)
@given(reading_orders(seeds=st.none()))
def test_without_a_seed_chunks_are_read_in_natural_order(order):
    assert order.chunks(range(order.num_training)).tolist() == list(range(order.num_training))


@settings(deadline=None)
@given(reading_orders(), st.integers(0, 500), st.integers(0, 200))
def test_chunks_agree_with_the_cursor_at_each_position(order, start, count):
    positions = range(start, start + count)  # many of these ranges cross epochs
    shards, offsets = order.locate(order.chunks(positions))
    one_by_one = [order.cursor(position) for position in positions]
    assert list(zip(shards.tolist(), offsets.tolist(), strict=True)) == [cursor[1:] for cursor in one_by_one]


@settings(deadline=None)
@given(reading_orders())
def test_locate_names_each_chunk_once_in_natural_order(order):
    wanted = [(shard, offset) for shard, count in enumerate(order.shard_chunks) for offset in range(count)]
    shards, offsets = order.locate(np.arange(order.bounds[-1]))
    assert list(zip(shards.tolist(), offsets.tolist(), strict=True)) == wanted


@settings(deadline=None)
@given(reading_orders())
def test_training_and_held_out_chunks_are_the_whole_dataset(order):
    held_out = order.held_out(range(order.num_held_out)).tolist()
    training = order.chunks(range(order.num_training)).tolist()
    assert Counter(training + held_out) == Counter(range(order.bounds[-1]))


@pytest.mark.parametrize("seed", [None, 7])
def test_a_seed_does_not_move_the_held_out_chunks(seed):
    assert ReadingOrder(SHARDS, num_held_out=2, seed=seed).held_out(range(2)).tolist() == [4, 5]


def test_every_epoch_and_every_seed_has_another_order():
    orders = [ReadingOrder((1000,), seed=seed) for seed in (0, 1, 11)]
    epochs = [tuple(order.chunks(range(e * 1000, e * 1000 + 1000))) for order in orders for e in range(12)]
    assert len(set(epochs)) == len(epochs)


def test_a_seeded_order_never_changes_between_releases():
    """A run's checkpoint holds only a cursor: other numbers here would silently read other documents on resume."""
    order = ReadingOrder((10,), seed=1)
    assert order.chunks(range(20)).tolist() == [9, 5, 0, 3, 2, 8, 6, 1, 7, 4, 9, 2, 5, 4, 8, 3, 0, 1, 7, 6]


def test_a_seeded_order_scatters_neighbours():
    chunks = ReadingOrder((100_000,), seed=3).chunks(range(100_000))
    assert abs(np.corrcoef(np.arange(100_000), chunks)[0, 1]) < 0.02
    assert abs(np.corrcoef(chunks[:-1], chunks[1:])[0, 1]) < 0.02


@settings(deadline=None)
@given(reading_orders(), st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_what_was_read_stays_read_when_a_run_goes_on_with_other_batches(order, batches):
    """A run is where its cursor says, however large the steps were that led there and are still to come."""
    position, seen = 0, list[int]()
    for batch in batches:
        seen += order.chunks(range(position, position + batch)).tolist()
        position = order.position(order.cursor(position)) + batch  # as a checkpoint and a restart would
    assert seen == order.chunks(range(position)).tolist()
    epoch = seen[: order.num_training]
    assert len(set(epoch)) == len(epoch)


# ranks


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 300), st.integers(1, 40))
def test_ranks_together_read_exactly_the_global_batch_in_order(start, global_batch, dp_size):
    shares = [rank_positions(start, global_batch, rank, dp_size) for rank in range(dp_size)]
    assert [position for share in shares for position in share] == list(range(start, start + global_batch))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@settings(deadline=None)
@given(reading_orders(), st.sampled_from([(1, 2), (2, 3), (4, 6), (1, 12)]))
def test_world_size_does_not_change_the_data(order, sizes):
    few, many = [
        np.concatenate([order.chunks(rank_positions(24, 12, rank, dp_size)) for rank in range(dp_size)])
        for dp_size in sizes
    ]
    np.testing.assert_array_equal(few, many)


# permutation


@pytest.mark.parametrize("size", [*range(1, 40), 99, 100, 101, 2**12 - 1, 2**12, 2**12 + 1, 100_003])
def test_permute_is_a_bijection_that_unpermute_inverts(size):
    places = np.arange(size)
    images = permute(places, size, b"key")
    np.testing.assert_array_equal(np.sort(images), places)
    np.testing.assert_array_equal(unpermute(images, size, b"key"), places)


@settings(deadline=None)
@given(st.integers(1, 2**62), st.binary(max_size=20), st.data())
def test_permute_stays_in_range_and_inverts_at_any_size(size, key, data):
    places = np.array(data.draw(st.lists(st.integers(0, size - 1), max_size=20)), dtype=np.int64)
    images = permute(places, size, key)
    assert ((images >= 0) & (images < size)).all()
    np.testing.assert_array_equal(unpermute(images, size, key), places)


def test_permute_of_part_is_part_of_permute():
    whole = permute(np.arange(1000), 1000, b"key")
    np.testing.assert_array_equal(permute(np.arange(300, 500), 1000, b"key"), whole[300:500])


def test_every_order_of_four_is_about_equally_likely():
    orders = Counter(tuple(permute(np.arange(4), 4, b"%d" % key)) for key in range(2400))
    assert len(orders) == 24
    assert min(orders.values()) > 50
    assert max(orders.values()) < 200
