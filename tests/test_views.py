"""Chunks as a model takes them, against a reconstruction from the files with numpy alone."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from preprocess.config import PackSettings
from preprocess.pack import pack
from shared.errors import FormatError
from tests.train_helpers import recipe, write_documents
from train.data import ChunkReader, chain_digest
from train.loss import IGNORED
from train.views import open_view

CPU = torch.device("cpu")
END = 60_000
LENGTH = 16
SIZES = [[3, 0, 40, 6, 17, 2, 2], [], [90], [2, 30, 16, 18, 5, 5, 9, 1, 7, 12], [1]]
METHODS = ["best-fit", "whole"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Shards in which no two ids of documents are alike, with both packings."""
    directory = tmp_path_factory.mktemp("packed") / "tokens"
    index = write_documents(directory, SIZES, end=END)
    for method in METHODS:
        pack(directory, PackSettings(LENGTH, method))
    return directory, index


def config(method, **changes):
    changes = {"data__validation_chunks": 0, "data__document_mask": method is not None, **changes}
    return recipe(model__vocab_size=END + 1, data__packing=method, data__sequence_length=LENGTH, **changes)


def opened(dataset, method, dp_rank=0, dp_size=1, **changes):
    directory, index = dataset
    wanted = config(method, **changes)
    return ChunkReader(open_view(directory, index, wanted), wanted, dp_rank, dp_size, CPU)


def fetched(reader, positions):
    found = [reader.fetch(position)[0] for position in positions]
    reader.close()
    return found


def reconstructed(directory, method):
    """Every chunk of a packing in natural order: inputs, targets, starts of documents."""
    chunks = []
    for path in sorted((directory / f"packings/{method}-{LENGTH}").glob("*.chunks.npy")):
        tokens = np.load(directory / f"{path.name[:5]}.npy").tolist()
        pieces = np.load(path.with_name(f"{path.name[:5]}.pieces.npy")).tolist()
        for first, count, num_targets in np.load(path).tolist():
            inputs, targets, starts = [END] * LENGTH, [IGNORED] * LENGTH, [num_targets] * LENGTH
            here = pieces[first : first + count]
            for number, (start, place) in enumerate(here):
                end = here[number + 1][1] if number + 1 < count else num_targets
                for i in range(end - place):
                    inputs[place + i], targets[place + i], starts[place + i] = (
                        tokens[start + i],
                        tokens[start + i + 1],
                        place,
                    )
            chunks.append((inputs, targets, starts))
    return chunks


def rows(batches):
    return [
        row
        for batch in batches
        for row in zip(batch.inputs_BT.tolist(), batch.targets_BT.tolist(), batch.starts_BT.tolist(), strict=True)
    ]


def documents(dataset):
    """The ids of each document, by the plain files."""
    directory, index = dataset
    found = []
    for shard in range(len(index.shards)):
        tokens, offsets = np.load(directory / f"{shard:05d}.npy"), np.load(directory / f"{shard:05d}.documents.npy")
        found += [tokens[a:b].tolist() for a, b in pairwise(offsets) if b > a]
    return found


# what is read


@pytest.mark.parametrize("method", METHODS)
def test_every_chunk_is_what_its_files_say(dataset, method):
    reader = opened(dataset, method, data__order="natural", data__global_batch=1, training__microbatch=1)
    batches = fetched(reader, range(reader.order.num_training))
    assert rows(batches) == reconstructed(dataset[0], method)
    assert [batch.num_targets for batch in batches] == [int((b.targets_BT != IGNORED).sum()) for b in batches]
    assert {batch.starts_BT.dtype for batch in batches} == {torch.int32}


@pytest.mark.parametrize("order", ["natural", "shuffled"])
@pytest.mark.parametrize("method", METHODS)
def test_an_epoch_trains_on_every_id_of_its_documents_but_the_first_exactly_once(dataset, order, method):
    reader = opened(dataset, method, data__order=order, data__global_batch=1, training__microbatch=1)
    batches = fetched(reader, range(reader.order.num_training))
    found = Counter(target for batch in batches for target in batch.targets_BT.flatten().tolist() if target != IGNORED)
    taken = [ids for ids in documents(dataset) if method == "best-fit" or len(ids) - 1 <= LENGTH]
    assert found == Counter(target for ids in taken for target in ids[1:])
    assert sum(batch.num_targets for batch in batches) == sum(len(ids) - 1 for ids in taken)


@pytest.mark.parametrize("method", METHODS)
def test_no_target_is_of_another_document_than_its_input(dataset, method):
    reader = opened(dataset, method)
    follows = {pair for ids in documents(dataset) for pair in pairwise(ids)}
    for batch in fetched(reader, range(0, reader.order.num_training, 4)):
        real = batch.targets_BT != IGNORED
        assert set(zip(batch.inputs_BT[real].tolist(), batch.targets_BT[real].tolist(), strict=True)) <= follows
        assert END not in batch.inputs_BT[real]


@pytest.mark.parametrize("method", METHODS)
def test_the_starts_tell_documents_apart(dataset, method):
    reader = opened(dataset, method)
    number_of = {id_: number for number, ids in enumerate(documents(dataset)) for id_ in ids[:-1]}
    for batch in fetched(reader, range(0, reader.order.num_training, 4)):
        for inputs, targets, starts in rows([batch]):
            numbers = [number_of[i] if t != IGNORED else -1 for i, t in zip(inputs, targets, strict=True)]
            for place, start in enumerate(starts):
                assert start <= place
                assert numbers[start] == numbers[place]
                assert start == 0 or numbers[start - 1] != numbers[place]


def test_held_out_chunks_are_the_last_rows_and_never_trained_on(dataset):
    reader = opened(dataset, "best-fit", data__validation_chunks=4)
    held_out = rows([reader.held_out(0)])
    trained = rows(fetched(reader, range(0, reader.order.num_training, 4)))
    assert held_out == reconstructed(dataset[0], "best-fit")[-4:]
    assert not [row for row in held_out if row in trained]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, 70), max_size=12), min_size=1, max_size=3),
    st.sampled_from(["natural", "shuffled"]),
)
def test_best_fit_has_the_targets_of_the_plain_stream_but_the_first_id_of_each_document(sizes, order):
    assume(any(size > 1 for shard in sizes for size in shard))
    with TemporaryDirectory() as name:
        index = write_documents(Path(name), sizes, end=END)
        pack(Path(name), PackSettings(LENGTH))
        found = []
        for method in ("best-fit", None):
            reader = opened(
                (Path(name), index), method, data__order=order, data__global_batch=1, training__microbatch=1
            )
            batches = fetched(reader, range(reader.order.num_training))
            found.append(
                Counter(target for batch in batches for target in batch.targets_BT[batch.targets_BT >= 0].tolist())
            )
        firsts = Counter[int]()
        for number, shard in enumerate(sizes):
            begins = np.cumsum([0, *shard])[:-1][np.array(shard, bool)][1:]  # a shard's first id is never a target
            firsts.update(np.load(Path(name) / f"{number:05d}.npy")[begins].tolist())
    assert found[0] == found[1] - firsts
    assert found[1].total() == found[0].total() + firsts.total()


# the same data however it is read


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dp_size", [2, 3])
def test_any_number_of_ranks_reads_the_same_global_batch(dataset, method, dp_size):
    changes = {"data__global_batch": 6}
    for position in (0, 6, 30):
        alone = fetched(opened(dataset, method, **changes), [position])[0]
        parts = [fetched(opened(dataset, method, rank, dp_size, **changes), [position])[0] for rank in range(dp_size)]
        for name in ("inputs_BT", "targets_BT", "starts_BT"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(alone, name))
        assert {part.num_targets for part in parts} == {alone.num_targets}
        together = np.concatenate([part.row_digests for part in parts])
        assert chain_digest("before", together) == chain_digest("before", alone.row_digests)


@pytest.mark.parametrize("order", ["natural", "shuffled"])
def test_reading_may_begin_at_any_position(dataset, order):
    reader = opened(dataset, "best-fit", data__order=order)
    straight = fetched(reader, range(0, 3 * reader.order.num_training, 4))
    for number, batch in enumerate(straight):
        begun = fetched(opened(dataset, "best-fit", data__order=order), [4 * number])[0]
        assert rows([begun]) == rows([batch])
        assert np.array_equal(begun.row_digests, batch.row_digests)
        cursor = reader.order.cursor(4 * number)
        assert reader.order.position(cursor) == 4 * number


@pytest.mark.parametrize("method", [None, *METHODS])
def test_what_was_asked_of_the_disk_before_is_read_as_it_is(dataset, method):
    directory, index = dataset
    view, other = (open_view(directory, index, config(method)) for _ in range(2))
    shards = np.repeat(np.arange(len(SIZES)), view.shard_chunks)
    offsets = np.concatenate([np.arange(count) for count in view.shard_chunks])
    view.will_need(shards, offsets)
    asked, plain = view.read(shards, offsets), other.read(shards, offsets)
    assert np.array_equal(asked.ids, plain.ids)
    assert np.array_equal(asked.num_targets, view.num_targets(shards, offsets))


# documents of the plain stream


def plain_starts(directory, index, length):
    """Of every chunk of the stream in natural order, from the offsets alone."""
    rows = []
    for shard in range(len(index.shards)):
        offsets = np.load(directory / f"{shard:05d}.documents.npy").tolist()
        for first in range(0, offsets[-1] - 1, length):
            rows.append([max(first, *(b for b in offsets if b <= first + t)) - first for t in range(length)])
    return rows


@pytest.mark.parametrize("option", ["document_mask", "restart_positions"])
@pytest.mark.parametrize("length", [1, 7, 16, 64])
def test_the_documents_of_a_plain_stream_are_told_apart_where_asked(dataset, option, length):
    directory, index = dataset
    changes = {f"data__{option}": True, "data__sequence_length": length, "data__order": "natural"}
    wanted = recipe(
        model__vocab_size=END + 1, data__validation_chunks=0, data__global_batch=2, training__microbatch=1, **changes
    )
    reader = ChunkReader(open_view(directory, index, wanted), wanted, 0, 1, CPU)
    batches = fetched(reader, range(0, reader.order.num_training, 2))
    found = [row for batch in batches for row in batch.starts_BT.tolist()][: reader.order.num_training]
    assert found == plain_starts(directory, index, length)
    assert {batch.starts_BT.dtype for batch in batches} == {torch.int32}


def test_documents_cut_short_are_told(tmp_path):
    index = write_documents(tmp_path, SIZES)
    view = open_view(tmp_path, index, config(None, data__document_mask=True))
    view.check()
    path = tmp_path / "00003.documents.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"00003.documents.npy is [\d,]+ bytes; [\d,]+ are wanted"):
        view.check()


@pytest.mark.parametrize("method", [None, "best-fit"])
def test_documents_are_not_told_apart_unless_asked(dataset, method):
    plain, told = (opened(dataset, method, data__document_mask=mask) for mask in (False, True))
    (without,), (batch,) = fetched(plain, [4]), fetched(told, [4])
    assert without.starts_BT is None
    assert torch.equal(without.targets_BT, batch.targets_BT)
    assert np.array_equal(without.row_digests, batch.row_digests)


# digests


def digest_of(directory, index, method="best-fit"):
    reader = opened((directory, index), method, data__order="natural", data__global_batch=1, training__microbatch=1)
    batches = fetched(reader, range(reader.order.num_training))
    return [bytes(batch.row_digests[0]) for batch in batches]


def test_a_digest_tells_every_chunk_of_either_packing(dataset):
    found = digest_of(*dataset)
    assert found == digest_of(*dataset)
    assert len(set(found)) == len(found)


def test_a_digest_tells_where_documents_begin(tmp_path):
    """The same ids, cut into documents otherwise."""
    found = []
    for number, sizes in enumerate(([8, 8], [6, 10])):
        directory = tmp_path / str(number)
        index = write_documents(directory, [sizes])
        np.save(directory / "00000.npy", np.full(17, 7, "<u2"))
        pack(directory, PackSettings(LENGTH))
        found.append(digest_of(directory, index))
    assert found[0] != found[1]


@pytest.mark.parametrize("place", [0, 5, 16])
def test_a_digest_tells_a_single_id_a_last_target_too(tmp_path, place):
    index = write_documents(tmp_path, [[17]])
    pack(tmp_path, PackSettings(LENGTH))
    before = digest_of(tmp_path, index)
    tokens = np.load(tmp_path / "00000.npy")
    tokens[place] ^= 1
    np.save(tmp_path / "00000.npy", tokens)
    assert digest_of(tmp_path, index) != before


# files


@pytest.mark.parametrize(
    "name", ["00003.npy", "packings/whole-16/00003.chunks.npy", "packings/whole-16/00000.pieces.npy"]
)
def test_a_file_that_is_not_there_in_full_is_told(tmp_path, name):
    index = write_documents(tmp_path, SIZES)
    pack(tmp_path, PackSettings(LENGTH, "whole"))
    view = open_view(tmp_path, index, config("whole"))
    view.check()
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(FormatError, match=rf"{name} is [\d,]+ bytes; [\d,]+ are wanted"):
        view.check()


def test_a_view_names_its_packing_and_its_chunks(dataset):
    directory, index = dataset
    plain, packed = (open_view(directory, index, config(method)) for method in (None, "best-fit"))
    document = json.loads((directory / "packings/best-fit-16/index.json").read_bytes())
    assert (plain.packing, packed.packing) == (None, document["fingerprint"])
    assert packed.shard_chunks == tuple(shard["num_chunks"] for shard in document["shards"])
