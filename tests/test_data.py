import dataclasses
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from shared.errors import FormatError
from shared.format import tokens_path
from tests.train_helpers import recipe, write_tokens
from train.data import Batch, ChunkReader, chain_digest
from train.loss import IGNORED
from train.orders import reading_order
from train.views import open_view

CPU = torch.device("cpu")
END = 60_000
SIZES = (70, 1, 0, 33, 130)  # of the shards; two have no chunk


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Shards in which no two ids are alike."""
    directory = tmp_path_factory.mktemp("tokens")
    ids, starts = np.arange(1, 1 + sum(SIZES)), np.cumsum((0, *SIZES))
    shards = [ids[start : start + size].tolist() for start, size in zip(starts, SIZES, strict=False)]
    return directory, write_tokens(directory, shards, vocab_size=END + 1, end=END), shards


def opened(dataset, dp_rank=0, dp_size=1, **changes):
    directory, index, _ = dataset
    config = recipe(**{"model__vocab_size": END + 1, "data__validation_chunks": 0, **changes})
    return ChunkReader(open_view(directory, index, config), config, dp_rank, dp_size, CPU)


def batches(reader, positions):
    read = [reader.fetch(position)[0] for position in positions]
    reader.close()
    return read


def targets_of(batch):
    return batch.targets_BT[batch.targets_BT != IGNORED].tolist()


# one epoch


@pytest.mark.parametrize("order", ["natural", "shuffled"])
@pytest.mark.parametrize("length", [1, 5, 16, 64])
def test_each_token_but_a_shards_first_is_a_target_exactly_once_an_epoch(dataset, order, length):
    changes = {"data__sequence_length": length, "data__order": order, "data__global_batch": 1}
    reader = opened(dataset, training__microbatch=1, **changes)
    found = Counter[int]()
    for batch in batches(reader, range(reader.order.num_training)):
        found.update(targets_of(batch))
        assert batch.num_targets == len(targets_of(batch))
    assert found == Counter(token for shard in dataset[2] for token in shard[1:])


@pytest.mark.parametrize("length", [5, 16, 64])
def test_a_target_is_the_id_that_follows_its_input(dataset, length):
    for batch in batches(opened(dataset, data__sequence_length=length), range(0, 12, 4)):
        real = batch.targets_BT != IGNORED
        assert torch.equal(batch.targets_BT[real], batch.inputs_BT[real] + 1)
        assert torch.equal(batch.inputs_BT[:, 1:][real[:, 1:]], batch.targets_BT[:, :-1][real[:, 1:]])


def test_padding_is_end_of_document_and_never_a_target(dataset):
    reader = opened(dataset, data__order="natural")
    batch = batches(reader, [4])[0]  # the last chunk of a shard of 70, then shards of 33 and 130
    assert batch.inputs_BT[0].tolist() == [65, 66, 67, 68, 69, 70] + [END] * 10
    assert batch.targets_BT[0].tolist() == [66, 67, 68, 69, 70] + [IGNORED] * 11
    assert batch.num_targets == 5 + 16 + 16 + 16


def test_a_global_batch_may_span_two_epochs(dataset):
    reader = opened(dataset, data__order="natural")
    num_training = reader.order.num_training
    last, first = batches(reader, [num_training - 2, 0])
    assert torch.equal(last.inputs_BT[2:], first.inputs_BT[:2])


def test_held_out_chunks_are_the_last_and_never_trained_on(dataset):
    reader = opened(dataset, data__validation_chunks=4, data__global_batch=4)
    held_out = set(targets_of(reader.held_out(0)))
    trained = {
        token for batch in batches(reader, range(0, 3 * reader.order.num_training, 4)) for token in targets_of(batch)
    }
    everything = {token for shard in dataset[2] for token in shard[1:]}
    assert held_out == set(dataset[2][-1][-(130 - 1 - 5 * 16) :])
    assert trained == everything - held_out


# the same data however it is read


@pytest.mark.parametrize("order", ["natural", "shuffled"])
@pytest.mark.parametrize("dp_size", [2, 3, 4, 12])
def test_any_number_of_ranks_reads_the_same_global_batch(dataset, order, dp_size):
    changes = {"data__global_batch": 12, "data__order": order}
    alone = batches(opened(dataset, **changes), [24])[0]
    parts = [batches(opened(dataset, rank, dp_size, **changes), [24])[0] for rank in range(dp_size)]
    assert torch.equal(torch.cat([part.inputs_BT for part in parts]), alone.inputs_BT)
    assert torch.equal(torch.cat([part.targets_BT for part in parts]), alone.targets_BT)
    assert {part.num_targets for part in parts} == {alone.num_targets}
    together = np.concatenate([part.row_digests for part in parts])
    assert chain_digest("before", together) == chain_digest("before", alone.row_digests)


def digests(dataset, **changes):
    digest, chain = "", []
    for batch in batches(opened(dataset, **changes), range(0, 16, 4)):
        digest = chain_digest(digest, batch.row_digests)
        chain.append(digest)
    return chain


def test_the_digest_of_the_same_data_is_the_same_and_grows_with_every_batch(dataset):
    assert digests(dataset) == digests(dataset)
    assert len(set(digests(dataset))) == 4


@pytest.mark.parametrize(
    "changes", [{"training__seed": 1}, {"data__order": "natural"}, {"data__sequence_length": 15}], ids=str
)
def test_the_digest_of_other_data_is_another(dataset, changes):
    assert not set(digests(dataset)) & set(digests(dataset, **changes))


def test_the_digest_tells_a_single_id(tmp_path):
    shards = [list(range(200)), [*range(150), 3, *range(151, 200)]]
    found = []
    for number, shard in enumerate(shards):
        index = write_tokens(tmp_path / str(number), [shard], vocab_size=256)
        found.append(digests((tmp_path / str(number), index, shards), data__order="natural"))
    assert found[0][:2] == found[1][:2]  # 8 chunks of 16 come before it
    assert found[0][2] != found[1][2]
    assert found[0][3] != found[1][3]


def test_what_was_read_ahead_is_thrown_away_when_another_position_is_asked(dataset):
    positions = [8, 0, 4, 4, 20, 8]
    hopping = batches(opened(dataset), positions)
    for position, batch in zip(positions, hopping, strict=True):
        fresh = batches(opened(dataset), [position])[0]
        assert torch.equal(batch.inputs_BT, fresh.inputs_BT)
        assert torch.equal(batch.targets_BT, fresh.targets_BT)


def test_a_shard_that_is_cut_short_while_reading_is_told(tmp_path):
    index = write_tokens(tmp_path, [list(range(200))], vocab_size=256)
    reader = opened((tmp_path, index, None))
    path = tokens_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(FormatError, match=r"00000.npy is [\d,]+ bytes; [\d,]+ are wanted"):
        reader.fetch(0)
    reader.close()


def test_the_reader_gathers_on_one_thread_and_leaves_a_step_its_own(dataset):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    reader = opened(dataset)
    assert reader._thread.submit(torch.get_num_threads).result() == 1
    reader.close()
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
    torch.set_num_threads(before)


# small pieces


@pytest.mark.parametrize(("pieces", "rows"), [(1, [4]), (2, [2, 2]), (4, [1, 1, 1, 1])])
@pytest.mark.parametrize("has_starts", [False, True])
def test_a_batch_splits_into_equal_microbatches_in_order(pieces, rows, has_starts):
    ids = torch.arange(12).view(4, 3)
    starts = ids // 2 if has_starts else None
    whole = Batch(ids, ids + 1, 99, np.arange(4 * 16, dtype=np.uint8).reshape(4, 16), starts)
    parts = list(whole.split(pieces))
    assert [len(part.inputs_BT) for part in parts] == rows
    assert {part.num_targets for part in parts} == {99}
    assert torch.equal(torch.cat([part.inputs_BT for part in parts]), ids)
    assert torch.equal(torch.cat([part.targets_BT for part in parts]), ids + 1)
    assert np.array_equal(np.concatenate([part.row_digests for part in parts]), whole.row_digests)
    if has_starts:
        assert torch.equal(torch.cat([part.starts_BT for part in parts]), starts)
    else:
        assert {part.starts_BT for part in parts} == {None}


@pytest.mark.parametrize("has_starts", [False, True])
def test_a_batch_goes_to_a_device_whole(has_starts):
    ids = torch.arange(12).view(4, 3)
    batch = Batch(ids, ids, 99, np.zeros((4, 16), np.uint8), ids if has_starts else None)
    there = batch.to(torch.device("meta"))
    assert {there.inputs_BT.device.type, there.targets_BT.device.type} == {"meta"}
    assert (None if there.starts_BT is None else there.starts_BT.device.type) == ("meta" if has_starts else None)


def test_the_reading_order_follows_the_recipe(dataset):
    directory, index, _ = dataset
    natural, shuffled = (
        reading_order(open_view(directory, index, config), config)
        for config in (recipe(data__order="natural", training__seed=3), recipe(training__seed=3))
    )
    assert natural.seed is None
    assert shuffled == dataclasses.replace(natural, seed=3)
    assert (natural.shard_chunks, natural.num_held_out) == ((5, 0, 0, 2, 9), 4)


def test_a_validation_split_leaves_every_chunk_to_train_on(dataset, tmp_path):
    directory, index, shards = dataset
    held_out = write_tokens(tmp_path, [[7] * 100, [9] * 60], vocab_size=END + 1, end=END)
    config = recipe(model__vocab_size=END + 1, data__validation="split")
    reader = ChunkReader(open_view(directory, index, config), config, 0, 1, CPU, open_view(tmp_path, held_out, config))
    assert (reader.order.num_held_out, reader.num_held_out) == (0, 4)
    assert set(targets_of(reader.held_out(0))) == {9}  # 59 targets, in the last 4 chunks of 16
    assert reader.held_out(0).num_targets == 59
    assert reader.order.num_training == sum(-(-(len(shard) - 1) // 16) for shard in shards if shard)
    reader.close()
