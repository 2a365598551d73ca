import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shared.mixed_order import MixedOrder, next_unread
from shared.mixture import Mixture
from tests.test_cursor import LENGTHS, reading_orders, streams


@st.composite
def mixed_orders(draw):
    """Any order of up to four sources, each of which is begun anywhere in its first epochs."""
    parts = tuple(draw(st.lists(reading_orders(), min_size=1, max_size=4)))
    weights = tuple(draw(st.integers(1, 9)) for _ in parts)
    starts = tuple(draw(st.integers(0, 3 * part.num_training)) for part in parts)
    return MixedOrder(parts, Mixture(weights), starts)


def of_source(order, source, chunks):
    """The chunks of one source, numbered as in that alone."""
    first, end = order.first_chunks[source : source + 2]
    return (chunks[(first <= chunks) & (chunks < end)] - first).tolist()


@settings(deadline=None)
@given(mixed_orders(), st.integers(0, 10**12))
def test_position_and_cursor_are_inverse_over_all_sources(order, position):
    cursor = order.cursor(position)
    assert order.position(cursor) == position
    assert order.epoch(position) == cursor.epoch
    assert 0 <= cursor.offset < order.shard_chunks[cursor.shard]


@settings(deadline=None)
@given(mixed_orders(), st.integers(0, 500), st.integers(0, 200))
def test_each_source_is_read_on_in_its_own_order_from_where_it_was_begun(order, start, size):
    chunks = order.chunks(range(start, start + size))
    begin, end = order.taken(start), order.taken(start + size)
    for source, part in enumerate(order.parts):
        assert of_source(order, source, chunks) == part.chunks(range(begin[source], end[source])).tolist()


@settings(deadline=None)
@given(mixed_orders())
def test_nothing_of_a_source_comes_again_before_the_source_was_read_through(order):
    order = MixedOrder(order.parts, order.mixture, (0,) * len(order.parts))
    for source, part in enumerate(order.parts):
        end = int(order.mixture.position(source, np.array([part.num_training]))[0])
        once = of_source(order, source, order.chunks(range(end)))
        assert sorted(once) == list(range(part.num_training))


@settings(deadline=None)
@given(mixed_orders(), st.integers(0, 500), st.integers(0, 200), st.integers(1, 200))
def test_chunks_agree_with_the_cursor_at_each_position_however_many_are_asked_for(order, start, count, batch):
    stop = start + count
    batches = [range(first, min(first + batch, stop)) for first in range(start, stop, batch)]
    places = [order.locate(order.chunks(positions)) for positions in batches]
    found = [place for shards, offsets in places for place in zip(shards.tolist(), offsets.tolist(), strict=True)]
    assert found == [order.cursor(position)[1:] for position in range(start, stop)]


@settings(deadline=None, max_examples=30)
@given(mixed_orders(), st.integers(0, 200), st.integers(0, 200), st.data())
def test_the_times_of_a_chunk_are_all_positions_at_which_it_is_read(order, start, size, data):
    positions = range(start, start + size)
    chunk = data.draw(st.integers(0, int(order.bounds[-1]) - 1))
    wanted = np.flatnonzero(order.chunks(positions) == chunk) + start
    assert order.times(chunk, positions) == wanted.tolist()


@settings(deadline=None)
@given(mixed_orders())
def test_held_out_chunks_are_those_of_each_source_and_never_trained_on(order):
    held_out = order.held_out(range(order.num_held_out))
    for source, part in enumerate(order.parts):
        assert of_source(order, source, held_out) == part.held_out(range(part.num_held_out)).tolist()
    assert not order.is_training(held_out).any()
    is_training = order.is_training(np.arange(order.bounds[-1]))
    assert int(is_training.sum()) == order.num_training
    for chunk in held_out.tolist():
        assert order.times(chunk, range(1000)) == []


@settings(deadline=None)
@given(streams(), st.sampled_from(LENGTHS), st.sampled_from(LENGTHS), st.integers(0, 2), st.data())
def test_what_is_read_on_at_another_length_was_not_read_before(stream, length, wanted, epoch, data):
    before, after = stream.order(length), stream.order(wanted)
    assume(before.num_training > 0 < after.num_training)
    place = data.draw(st.integers(0, before.num_training - 1))
    position = next_unread(before, length, epoch * before.num_training + place, after, wanted)
    done = stream.read(length, epoch * before.num_training, epoch * before.num_training + place)
    rest = stream.read(wanted, position, (epoch + 1) * after.num_training)
    everything = stream.read(length, epoch * before.num_training, (epoch + 1) * before.num_training)
    left_out = set(everything) - set(done) - set(rest)
    assert not set(done) & set(rest)
    assert len(left_out) < wanted
