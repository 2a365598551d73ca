from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shared.cursor import Cursor, ReadingOrder, rank_positions
from shared.permutation import permute, unpermute

SHARDS = (5, 1)
LENGTHS = (3, 6, 12)
seeds = st.none() | st.integers(0, 2**63)


@st.composite
def reading_orders(draw, seeds=seeds):
    """Any order with at least one training chunk; shards without a chunk are common."""
    if draw(st.booleans()):
        return draw(streams(seeds)).order(draw(st.sampled_from(LENGTHS)))
    shard_chunks = tuple(draw(st.lists(st.integers(0, 60), min_size=1, max_size=8)))
    assume(sum(shard_chunks) > 0)
    return ReadingOrder(shard_chunks, draw(st.integers(0, sum(shard_chunks) - 1)), draw(seeds))


@dataclass(frozen=True)
class Stream:
    """Shards of so many targets, of which so many are held out, to be read at any of several lengths."""

    targets: tuple[int, ...]
    unit: int
    held_out: int
    seed: int | None

    def order(self, length):
        targets = np.array(self.targets)
        return ReadingOrder.of_stream(targets, length, self.unit, self.held_out // length, self.seed)

    def tokens(self, length, chunks):
        """(shard, place) of every target of these chunks."""
        shards, offsets = self.order(length).locate(chunks)
        return [
            (shard, place)
            for shard, offset in zip(shards.tolist(), offsets.tolist(), strict=True)
            for place in range(offset * length, min((offset + 1) * length, self.targets[shard]))
        ]

    def read(self, length, start, stop):
        """(shard, place) of every target from one position to another."""
        return self.tokens(length, self.order(length).chunks(range(start, stop)))


@st.composite
def streams(draw, seeds=seeds):
    """Any stream that is read at every one of LENGTHS; shards of less than a unit, and of none, are common."""
    unit = max(LENGTHS) * draw(st.integers(1, 3))
    targets = draw(st.lists(st.integers(0, 5 * unit), min_size=1, max_size=8))
    held_out = max(LENGTHS) * draw(st.integers(0, 5))
    stream = Stream(tuple(targets), unit, held_out, draw(seeds))
    assume(stream.order(max(LENGTHS)).num_training > 0)
    return stream


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
def test_held_out_chunks_are_in_order_behind_all_training_ones(order):
    held_out = order.held_out(range(order.num_held_out)).tolist()
    training = order.chunks(range(order.num_training)).tolist()
    assert sorted(training) == list(range(order.num_training))
    assert held_out == sorted(set(held_out))
    assert len(held_out) == order.num_held_out
    assert all(order.num_training <= chunk < order.bounds[-1] for chunk in held_out)
    if order.shard_units is None:
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


# units, and other lengths


@settings(deadline=None)
@given(streams(), st.integers(0, 3))
def test_each_epoch_reads_the_same_tokens_in_the_same_order_at_any_length_each_once(stream, epoch):
    sizes = {length: stream.order(length).num_training for length in LENGTHS}
    read = [stream.read(length, epoch * size, (epoch + 1) * size) for length, size in sizes.items()]
    assert read[0] == read[1] == read[2]
    left = stream.tokens(3, np.arange(sizes[3], stream.order(3).bounds[-1]))
    everything = [(shard, place) for shard, size in enumerate(stream.targets) for place in range(size)]
    assert sorted(read[0]) + left == everything


@settings(deadline=None)
@given(streams())
def test_the_same_tokens_are_held_out_at_any_length(stream):
    found = [
        stream.tokens(length, stream.order(length).held_out(range(stream.held_out // length))) for length in LENGTHS
    ]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == stream.held_out


@settings(deadline=None)
@given(streams(), st.integers(0, 2), st.sampled_from([(3, 6), (3, 12), (6, 12), (6, 3), (12, 3)]), st.data())
def test_a_cursor_told_at_another_length_is_between_the_same_tokens(stream, epoch, lengths, data):
    one, other = (stream.order(length) for length in lengths)
    position = data.draw(st.integers(epoch * one.num_training, (epoch + 1) * one.num_training))
    cursor = one.cursor(position).at_length(*lengths)
    if cursor is None:
        assert one.cursor(position).offset * lengths[0] % lengths[1] != 0
        return
    sides = []
    for order, here, length in ((one, position, lengths[0]), (other, other.position(cursor), lengths[1])):
        first, end = epoch * order.num_training, (epoch + 2) * order.num_training
        sides.append((stream.read(length, first, here), stream.read(length, here, end)))
    assert sides[0] == sides[1]


@settings(deadline=None)
@given(reading_orders(seeds=st.integers(0, 9)), st.integers(0, 2))
def test_the_chunks_of_a_unit_are_read_in_a_row_and_whole_units_before_the_ends_of_shards(order, epoch):
    start, size = epoch * order.num_training, order.unit_chunks
    units = order.chunks(range(start, start + max(order.num_units, 0) * size)).reshape(-1, size)
    assert (units - units[:, :1] == np.arange(size)).all()
    shards, offsets = order.locate(units[:, 0])
    assert (offsets % size == 0).all()
    whole = order.shard_chunks if order.shard_units is None else order.shard_units
    assert (offsets // size < np.array(whole)[shards]).all()


def test_units_of_one_chunk_in_shards_that_they_fill_are_the_order_without_units():
    plain = ReadingOrder((4, 0, 7, 1), num_held_out=2, seed=5)
    units = ReadingOrder.of_stream(np.array([16, 0, 28, 4]), 4, 4, num_held_out=2, seed=5)
    assert units.chunks(range(40)).tolist() == plain.chunks(range(40)).tolist()
    assert units.held_out(range(2)).tolist() == plain.held_out(range(2)).tolist()


def test_a_seeded_order_of_units_never_changes_between_releases():
    order = ReadingOrder.of_stream(np.array([18, 5, 3]), 2, 4, seed=1)  # chunks 9, 3, 2; units 4, 1, 0
    assert order.chunks(range(14)).tolist() == [9, 10, 0, 1, 6, 7, 2, 3, 4, 5, 8, 11, 12, 13]
    assert order.chunks(range(14, 28)).tolist() == [0, 1, 9, 10, 6, 7, 4, 5, 2, 3, 8, 12, 13, 11]


def test_fewer_units_than_are_held_out_leave_less_than_nothing():
    assert ReadingOrder.of_stream(np.array([9, 3]), 2, 4, num_held_out=5).num_training == -2
    assert ReadingOrder((2,), num_held_out=3).num_training == -1


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
