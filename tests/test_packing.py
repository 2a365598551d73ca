import json

import numpy as np
import pytest

from preprocess.config import PackSettings
from preprocess.pack import pack
from shared.arrays import open_array, write_array
from shared.errors import FormatError
from shared.packing import (
    CHUNK_DTYPE,
    PIECE_DTYPE,
    PackingName,
    chunks_path,
    open_chunks,
    open_pieces,
    packing_names,
    pieces_path,
    read_packing,
)
from shared.storage import write_sealed
from tests.train_helpers import write_documents

SIZES = [[3, 0, 12, 6], [], [2, 2]]


@pytest.fixture
def packed(tmp_path):
    """A packing of documents of 2, 11 and 5 targets, of none, and of 1 and 1."""
    index = write_documents(tmp_path / "tokens", SIZES)
    name = PackingName(tmp_path / "tokens", "best-fit", 8)
    return name, index, pack(name.tokens, PackSettings(name.length, name.method))


def changed(name, **changes):
    """The packing's index with other contents, sealed again."""
    path = name.directory / "index.json"
    write_sealed(path, {**json.loads(path.read_bytes()), **changes})


def refused(message, name, index):
    with pytest.raises(FormatError, match=message) as raised:
        read_packing(name, index)
    assert "\n" not in str(raised.value)


def test_the_arrays_are_plain_numpy_files_that_say_what_they_hold(packed):
    name, _, packing = packed
    chunks, pieces = np.load(name.directory / "00000.chunks.npy"), np.load(name.directory / "00000.pieces.npy")
    assert chunks["num_targets"].tolist() == [2, 8, 8]
    assert [pieces["start"].tolist(), pieces["place"].tolist()] == [[0, 3, 11, 15], [0, 0, 0, 3]]
    assert np.array_equal(open_chunks(name, packing, 0), chunks)
    assert np.array_equal(open_pieces(name, packing, 0), pieces)
    assert [len(open_chunks(name, packing, 1)), len(open_pieces(name, packing, 1))] == [0, 0]


def test_a_packing_reads_back_as_it_was_written(packed):
    name, index, packing = packed
    assert read_packing(name, index) == packing
    assert (packing.method, packing.length, packing.dataset) == ("best-fit", 8, index.fingerprint)
    assert [shard.num_chunks for shard in packing.shards] == [3, 0, 1]
    assert [packing.total(total) for total in ("num_targets", "num_padding", "num_pieces")] == [20, 12, 6]
    assert len(packing.fingerprint) == 64


def test_packings_are_found_by_method_and_length(packed):
    name = packed[0]
    for other in ("whole-16", "best-fit-16", "best-fit-016", "worst-fit-8", "best-fit-", "notes"):
        (name.directory.parent / other).mkdir()
    found = packing_names(name.tokens)
    assert [other.directory.name for other in found] == ["best-fit-8", "best-fit-16", "whole-16"]
    assert [other.is_finished for other in found] == [True, False, False]
    assert packing_names(name.tokens / "none") == []


def test_a_packing_that_is_not_there_is_told_with_those_that_are_and_the_command(packed):
    name, index, _ = packed
    command = f"make it with `python -m preprocess pack {name.tokens} --length 4 --method whole`"
    refused(
        rf"tokens has no packing whole-4 \(found: best-fit-8\): {command}", PackingName(name.tokens, "whole", 4), index
    )
    elsewhere = PackingName(name.tokens / "none", "whole", 4)
    refused(r"none has no packing whole-4 \(found: none\): make it with", elsewhere, index)


def test_a_directory_with_a_space_is_quoted_in_the_command(tmp_path):
    assert PackingName(tmp_path / "my tokens", "whole", 4).command == (
        f"python -m preprocess pack '{tmp_path}/my tokens' --length 4 --method whole"
    )


def test_a_packing_still_being_made_is_told(packed):
    name, index, _ = packed
    (name.directory / "index.json").unlink()
    refused(r"best-fit-8 is still being made \(no index.json\): wait for `python .*`, or run it again to", name, index)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, r"is argonne-packing version 2; argonne-packing version 1 is wanted: run `python .*` again$"),
        ({"format": "x"}, r"is x version 1; argonne-packing version 1 is wanted: run"),
        ({"length": 9}, r"best-fit-8/index.json is best-fit of length 9: run `python -m preprocess pack .*` again$"),
        ({"method": "whole"}, r"best-fit-8/index.json is whole of length 8: run"),
        ({"dataset": "d" * 64}, r"is of dataset dddddddddddd, the one there is [0-9a-f]{12}: run `python .*` again$"),
        ({"shards": 3}, r"shards: 3 is not a list: the packing was not written by this release: run"),
        ({"more": 1}, r"unknown key 'more'.*: the packing was not written by this release: run"),
    ],
    ids=str,
)
def test_a_packing_of_something_else_is_refused(packed, changes, message):
    name, index, _ = packed
    changed(name, **changes)
    refused(message, name, index)


def test_a_damaged_index_is_refused(packed):
    name, index, _ = packed
    path = name.directory / "index.json"
    path.write_bytes(path.read_bytes().replace(b"best-fit", b"west-fit"))
    refused("index.json does not match its own checksum", name, index)


@pytest.mark.parametrize(("place", "opener"), [(chunks_path, open_chunks), (pieces_path, open_pieces)])
def test_an_array_that_is_not_what_the_index_says_is_refused_with_the_command(packed, place, opener):
    name, _, packing = packed
    path = place(name.directory, 0)
    command = rf"delete 00000.\* there and run `python -m preprocess pack {name.tokens} --length 8 --method best-fit`"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=rf"{path.name} is [\d,]+ bytes; [\d,]+ are wanted: {command} again"):
        opener(name, packing, 0)
    np.save(path, np.zeros(3, np.uint16))
    with pytest.raises(FormatError, match=rf"{path.name} holds \(3,\) of uint16; .* is wanted: {command}"):
        opener(name, packing, 0)
    path.unlink()
    with pytest.raises(FormatError, match=rf"{path.name} is missing: {command}"):
        opener(name, packing, 0)


@pytest.mark.parametrize("dtype", [CHUNK_DTYPE, PIECE_DTYPE], ids=["chunks", "pieces"])
@pytest.mark.parametrize("size", [0, 1, 1000])
def test_records_are_written_as_numpy_itself_does(tmp_path, dtype, size):
    array = np.arange(size).astype(np.uint32).view("<u4")
    records = np.empty(size, dtype)
    for field in dtype.names:
        records[field] = array
    write_array(tmp_path / "a.npy", records)
    np.save(tmp_path / "b.npy", records)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert np.array_equal(open_array(tmp_path / "a.npy", dtype, size), records)
