from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess.coverage import is_covered
from preprocess.placing import best_fit, cut, place_documents

lengths = st.integers(1, 40)
documents = st.lists(st.integers(0, 130), max_size=60)  # sizes in ids; 0 is a null or empty row


def offsets_of(sizes):
    return np.cumsum([0, *sizes]).astype(np.int64)


def chunks_of(placed):
    """Each chunk as a list of (start, place, number of targets)."""
    found = []
    for first, count, num_targets in placed.chunks.tolist():
        pieces = placed.pieces[first : first + count].tolist()
        ends = [place for _, place in pieces[1:]] + [num_targets]
        found.append([(start, place, end - place) for (start, place), end in zip(pieces, ends, strict=True)])
    return found


def targets_of(placed):
    """The places in the shard of all ids that are targets."""
    return sorted(start + i + 1 for chunk in chunks_of(placed) for start, _, size in chunk for i in range(size))


def one_by_one(sizes, length):
    """Best-fit decreasing, as one says it: the chunk of each piece."""
    rooms, chunk_of = [], [0] * len(sizes)  # (room, when it got it) of each chunk
    for step, piece in enumerate(sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))):
        fitting = [(room, -when, chunk) for chunk, (room, when) in enumerate(rooms) if room >= sizes[piece]]
        room, _, chunk = min(fitting, default=(length, 0, len(rooms)))
        rooms[chunk:] = [(room - sizes[piece], step), *rooms[chunk + 1 :]]
        chunk_of[piece] = chunk
    return chunk_of


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), max_size=80), st.integers(30, 45))
def test_pieces_are_placed_as_by_best_fit_decreasing_one_by_one(sizes, length):
    chunk_of, num_chunks = best_fit(np.array(sizes, np.int64), length)
    found, wanted = {}, {}
    for number, (chunk, other) in enumerate(zip(chunk_of.tolist(), one_by_one(sizes, length), strict=True)):
        found.setdefault(chunk, []).append(number)
        wanted.setdefault(other, []).append(number)
    assert sorted(found.values()) == sorted(wanted.values())
    assert sorted(found) == list(range(num_chunks))


@settings(deadline=None)
@given(documents, lengths)
def test_best_fit_makes_every_id_of_every_document_but_its_first_a_target_exactly_once(sizes, length):
    offsets = offsets_of(sizes)
    wanted = [id_ for start, end in pairwise(offsets) for id_ in range(start + 1, end)]
    placed = place_documents(offsets, length, whole=False)
    assert targets_of(placed) == wanted
    assert len(placed.left_out) == 0


@settings(deadline=None)
@given(documents, lengths)
def test_whole_takes_exactly_the_documents_that_fit_a_chunk_and_counts_the_others(sizes, length):
    offsets = offsets_of(sizes)
    placed = place_documents(offsets, length, whole=True)
    pieces = sorted((start, size) for chunk in chunks_of(placed) for start, _, size in chunk)
    assert pieces == [
        (start, size - 1) for start, size in zip(offsets.tolist(), sizes, strict=False) if 1 <= size - 1 <= length
    ]
    assert placed.left_out.tolist() == [size - 1 for size in sizes if size - 1 > length]


@settings(deadline=None)
@given(documents, lengths, st.booleans())
def test_no_chunk_is_over_its_length_empty_or_with_a_hole(sizes, length, whole):
    for chunk in chunks_of(place_documents(offsets_of(sizes), length, whole=whole)):
        assert chunk
        assert sum(size for *_, size in chunk) <= length
        assert [place for _, place, _ in chunk] == np.cumsum([0, *(size for *_, size in chunk)])[:-1].tolist()
        assert all(size >= 1 for *_, size in chunk)


@settings(deadline=None)
@given(documents, lengths)
def test_only_longer_documents_are_cut_and_only_into_full_pieces_and_a_remainder(sizes, length):
    offsets = offsets_of(sizes)
    pieces = {document: [] for document in range(len(sizes))}
    for chunk in chunks_of(place_documents(offsets, length, whole=False)):
        for start, _, size in chunk:
            pieces[int(np.searchsorted(offsets, start, side="right")) - 1].append((start, size))
    for document, found in pieces.items():
        num_targets = max(sizes[document] - 1, 0)
        full, rest = divmod(num_targets, length)
        assert [size for _, size in sorted(found)] == [length] * full + [rest] * (rest > 0)


@settings(deadline=None)
@given(documents, lengths, st.booleans())
def test_chunks_are_ordered_by_their_first_piece_and_pieces_by_their_start(sizes, length, whole):
    chunks = chunks_of(place_documents(offsets_of(sizes), length, whole=whole))
    firsts = [chunk[0][0] for chunk in chunks]
    assert firsts == sorted(set(firsts))
    assert all(chunk == sorted(chunk) for chunk in chunks)


@settings(deadline=None)
@given(documents, lengths, st.booleans())
def test_any_two_chunks_are_together_over_the_length(sizes, length, whole):
    """Best fit never opens a chunk while another has room: no two could be one."""
    chunks = chunks_of(place_documents(offsets_of(sizes), length, whole=whole))
    least = sorted(sum(size for *_, size in chunk) for chunk in chunks)[:2]
    assert len(least) < 2 or sum(least) > length


@settings(deadline=None)
@given(documents, lengths, st.booleans(), st.data())
def test_what_is_lost_doubled_or_moved_is_found(sizes, length, whole, data):
    offsets, longest = offsets_of(sizes), length if whole else None
    placed = place_documents(offsets, length, whole=whole)
    assert is_covered(placed.chunks, placed.pieces, offsets, longest)
    if not len(placed.pieces):
        return
    number = data.draw(st.integers(0, len(placed.pieces) - 1))
    moved = placed.pieces.copy()
    moved["start"][number] += 1
    assert not is_covered(placed.chunks, moved, offsets, longest)
    shorter = placed.chunks.copy()
    shorter["num_targets"][-1] -= 1
    assert not is_covered(shorter, placed.pieces, offsets, longest)
    assert not is_covered(placed.chunks[:-1], placed.pieces[: placed.chunks[-1]["first_piece"]], offsets, longest)


@pytest.mark.parametrize(
    ("sizes", "length", "whole", "wanted"),
    [
        ([], 4, False, []),
        ([0, 0, 1], 4, False, []),  # nothing to predict
        ([5], 4, False, [[(0, 0, 4)]]),
        ([6], 4, False, [[(0, 0, 4)], [(4, 0, 1)]]),
        ([6], 4, True, []),
        ([3, 0, 3], 4, False, [[(0, 0, 2), (3, 2, 2)]]),
        ([2, 4, 3, 2], 3, False, [[(0, 0, 1), (6, 1, 2)], [(2, 0, 3)], [(9, 0, 1)]]),
        ([2, 2, 2, 2, 2], 2, True, [[(0, 0, 1), (2, 1, 1)], [(4, 0, 1), (6, 1, 1)], [(8, 0, 1)]]),
    ],
)
def test_documents_in_chunks(sizes, length, whole, wanted):
    assert chunks_of(place_documents(offsets_of(sizes), length, whole=whole)) == wanted


def test_a_document_of_any_size_is_cut_in_one_go():
    starts, sizes = cut(np.array([7]), np.array([10**12 + 5]), 10**9)
    assert (len(starts), starts[-1], sizes[0], sizes[-1]) == (1001, 10**12 + 7, 10**9, 5)


def test_real_document_lengths_pack_almost_without_padding(small_tokens):
    from shared.format import open_documents, read_index

    index = read_index(small_tokens)
    offsets = offsets_of(
        np.concatenate([np.diff(open_documents(small_tokens, index, i)) for i in range(len(index.shards))])
    )
    placed = place_documents(offsets, 512, whole=False)
    assert placed.chunks["num_targets"].sum() / (len(placed.chunks) * 512) > 0.995
