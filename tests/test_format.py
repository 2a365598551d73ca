import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.arrays import open_array
from shared.config import unstructure
from shared.errors import FormatError
from shared.format import (
    FORMAT,
    OFFSET_DTYPE,
    TOKEN_DTYPES,
    VERSION,
    GoldenVector,
    Index,
    Shard,
    Source,
    TokenizerIdentity,
    documents_path,
    num_chunks,
    num_targets,
    open_documents,
    open_tokens,
    read_index,
    receipt_path,
    stored_size,
    token_dtype,
    tokens_path,
    write_index,
)
from shared.storage import read_sealed, write_sealed

LENGTH = 4
END = 9
ROWS = [[[1, 2, 3, END], [], [4, END]], [[5, 6, 7, 8, END]]]  # ids of each row of each shard
UINT16 = TOKEN_DTYPES["uint16"]

token_counts = st.integers(0, 10_000)
lengths = st.integers(1, 300)


def write_shard(directory, number, rows, dtype="uint16"):
    tokens = [token for row in rows for token in row]
    ids = np.full(stored_size(len(tokens), LENGTH), END, TOKEN_DTYPES[dtype])
    ids[: len(tokens)] = tokens
    np.save(tokens_path(directory, number), ids)
    np.save(documents_path(directory, number), np.cumsum([0, *map(len, rows)], dtype=OFFSET_DTYPE))
    return Shard(
        source=0,
        first_row_group=number,
        num_row_groups=1,
        first_row=0,
        num_rows=len(rows),
        num_documents=sum(map(bool, rows)),
        num_null=0,
        num_empty=sum(not row for row in rows),
        text_bytes=10 * len(rows),
        num_tokens=len(tokens),
        num_chunks=num_chunks(len(tokens), LENGTH),
        num_padding=ids.size - len(tokens),
        tokens_sha256="00",
        documents_sha256="11",
    )


def write_dataset(directory, rows_of_shards=ROWS, dtype="uint16"):
    index = Index(
        format=FORMAT,
        version=VERSION,
        chunk_length=LENGTH,
        dtype=dtype,
        text_column="text",
        shard_bytes=1 << 20,
        tokenizer=TokenizerIdentity("aa", END + 1, "<|end|>", END, [GoldenVector("caf\u00e9", [1, 2])]),
        sources=[Source("a.parquet", 1000, 4, "bb")],
        shards=[write_shard(directory, number, rows, dtype) for number, rows in enumerate(rows_of_shards)],
    )
    write_index(directory, index)
    return index


@pytest.fixture
def tokens_file(tmp_path):
    path = tmp_path / "00003.npy"
    np.save(path, np.arange(9, dtype=UINT16))
    return path


# arithmetic


@pytest.mark.parametrize(
    ("num_tokens", "chunks", "size"),
    [
        (0, 0, 1),  # an empty shard stores one padding id
        (1, 0, 1),  # one id is nobody's target
        (2, 1, 5),
        (5, 1, 5),  # a full chunk: 4 targets
        (6, 2, 9),  # one id more starts another
        (9, 2, 9),
    ],
)
def test_chunks_and_stored_size_of_a_shard(num_tokens, chunks, size):
    assert (num_chunks(num_tokens, LENGTH), stored_size(num_tokens, LENGTH)) == (chunks, size)


@settings(deadline=None)
@given(token_counts, lengths)
def test_every_token_but_the_first_is_a_target_exactly_once(num_tokens, length):
    targets = [num_targets(num_tokens, length, offset) for offset in range(num_chunks(num_tokens, length))]
    assert sum(targets) == max(num_tokens - 1, 0)
    assert all(count == length for count in targets[:-1])
    assert all(1 <= count <= length for count in targets)


@settings(deadline=None)
@given(st.integers(1, 10_000), lengths)
def test_a_stored_shard_holds_its_tokens_and_less_than_a_chunk_of_padding(num_tokens, length):
    assert 0 <= stored_size(num_tokens, length) - num_tokens < length


@pytest.mark.parametrize("vocab_size", [1, 2**16, 2**16 + 1, 2**32])
def test_the_token_dtype_is_the_narrowest_that_holds_every_id(vocab_size):
    name = token_dtype(vocab_size)
    assert np.iinfo(TOKEN_DTYPES[name]).max >= vocab_size - 1
    assert name == "uint16" or vocab_size - 1 > np.iinfo("uint16").max


def test_names_of_a_shard_are_made_from_its_number(tmp_path):
    names = [make(tmp_path, 7).name for make in (tokens_path, documents_path, receipt_path)]
    assert names == ["00007.npy", "00007.documents.npy", "00007.json"]
    assert tokens_path(tmp_path, 123456).name == "123456.npy"


# index


def test_an_index_reads_back_as_it_was_written(tmp_path):
    index = write_dataset(tmp_path)
    found = read_index(tmp_path)
    assert found == index
    assert (found.num_tokens, found.shard_tokens()) == (11, [6, 5])


def test_the_fingerprint_is_the_one_returned_and_changes_with_anything_else(tmp_path):
    index = write_dataset(tmp_path)
    first = write_index(tmp_path, index)
    assert read_index(tmp_path).fingerprint == first
    assert write_index(tmp_path, read_index(tmp_path)) == first
    assert write_index(tmp_path, dataclasses.replace(index, text_column="body")) != first


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"nowhere not found: a token dataset is wanted; make one with `make tokeni"):
        read_index(tmp_path / "nowhere")


def test_a_directory_without_an_index_is_not_a_dataset(tmp_path):
    with pytest.raises(FormatError, match=r"is not a token dataset \(no index.json\): make one with `make tokenize"):
        read_index(tmp_path)


def test_a_dataset_without_an_index_yet_is_still_being_built(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match=r"is still being built \(no index.json\): wait for `make tokenize`"):
        read_index(tmp_path)


def test_an_edited_index_is_refused(tmp_path):
    write_dataset(tmp_path)
    path = tmp_path / "index.json"
    path.write_text(path.read_text().replace('"chunk_length":4', '"chunk_length":8'))
    with pytest.raises(FormatError, match="does not match its own checksum"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"version": 3}, "argonne-tokens version 3"),
        ({"format": "other-tokens"}, "other-tokens version 2"),
        ({"version": True, "format": None}, "None version True"),
    ],
)
def test_an_index_of_another_format_or_version_is_refused(tmp_path, change, found):
    write_dataset(tmp_path)
    path = tmp_path / "index.json"
    write_sealed(path, read_sealed(path) | change)
    with pytest.raises(FormatError, match=rf"is {found}; argonne-tokens version 2 is wanted: tokenize again"):
        read_index(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_lenght": 4}, r"unknown key 'chunk_lenght': did you mean 'chunk_length'\?.*tokenize again"),
        ({"shards": [{}]}, r"shards is not a table of columns: the index was not written by this release"),
        ({"shards": {}}, r"shards\.source is missing: the index"),
        ({"sources": {"path": ["a"], "size_bytes": [1, 2]}}, r"sources has columns of 1 to 2 values: as many in each"),
        ({"sources": {"path": [1], "size_bytes": [1], "num_rows": [1], "identity": [""]}}, r"path: 1 is not a string"),
        ({"shards": {"sauce": [1]}}, r"unknown key '.*shards\.sauce' \(known: source, first_row_group, "),
        (
            {"shards": [{}], "sources": [], "version": 1},
            r"shards\.0\.source is missing: the index was not written by this release",
        ),
        ({"chunk_length": "4"}, r"chunk_length: '4' is not a whole number"),
    ],
)
def test_an_index_that_this_release_did_not_write_is_refused(tmp_path, change, message):
    write_dataset(tmp_path)
    path = tmp_path / "index.json"
    write_sealed(path, read_sealed(path) | change)
    with pytest.raises(FormatError, match=message):
        read_index(tmp_path)


def test_an_index_is_json_that_anyone_can_read(tmp_path):
    write_dataset(tmp_path)
    document = json.loads((tmp_path / "index.json").read_bytes())
    assert document["tokenizer"]["golden"] == [{"text": "caf\u00e9", "ids": [1, 2]}]


def test_an_index_of_the_first_version_is_read_as_what_it_says(tmp_path):
    index = write_dataset(tmp_path)
    path = tmp_path / "index.json"
    lists = {name: unstructure(list(getattr(index, name))) for name in ("sources", "shards")}
    seal = write_sealed(path, read_sealed(path) | lists | {"version": 1})
    found = read_index(tmp_path)
    assert (found, found.fingerprint) == (index, seal)


# arrays


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_arrays_map_as_they_were_written(tmp_path, dtype):
    index = write_dataset(tmp_path, dtype=dtype)
    tokens = open_tokens(tmp_path, index, 0)
    assert (tokens.dtype, tokens.tolist()) == (TOKEN_DTYPES[dtype], [1, 2, 3, END, 4, END, END, END, END])
    assert open_documents(tmp_path, index, 0).tolist() == [0, 4, 4, 6]
    assert open_documents(tmp_path, index, 1).tolist() == [0, 5]


def test_an_empty_shard_maps(tmp_path):
    index = write_dataset(tmp_path, [[]])
    assert open_tokens(tmp_path, index, 0).tolist() == [END]
    assert open_documents(tmp_path, index, 0).tolist() == [0]


def test_a_map_cannot_be_written_through(tokens_file):
    with pytest.raises(ValueError, match="read-only"):
        open_array(tokens_file, UINT16, 9)[0] = 1


def test_every_array_version_of_numpy_maps(tmp_path):
    path = tmp_path / "00000.npy"
    for version in [(1, 0), (2, 0), (3, 0)]:
        with open(path, "wb") as file:
            np.lib.format.write_array(file, np.arange(9, dtype=UINT16), version=version)
        assert open_array(path, UINT16, 9).tolist() == list(range(9))


def test_a_missing_array_is_named_with_its_remedy(tmp_path):
    with pytest.raises(FormatError, match=r"00003\.npy is missing: delete 00003\.\* there and run `make tokenize` ag"):
        open_array(tmp_path / "00003.npy", UINT16, 9)


@pytest.mark.parametrize("contents", [b"", b"\x93NUM", b"PAR1" * 40, b"\x93NUMPY\x01\x00\xff\xff{"])
def test_a_file_that_is_not_an_array_is_refused(tokens_file, contents):
    tokens_file.write_bytes(contents)
    with pytest.raises(FormatError, match=r"00003\.npy is not a \.npy file \(.+\): delete 00003"):
        open_array(tokens_file, UINT16, 9)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros(9, "<u4"), r"\(9,\) of uint32"),
        (np.zeros(9, "<i2"), r"\(9,\) of int16"),
        (np.zeros(9, ">u2"), r"\(9,\) of >u2"),
        (np.zeros(8, "<u2"), r"\(8,\) of uint16"),
        (np.zeros(10, "<u2"), r"\(10,\) of uint16"),
        (np.zeros((3, 3), "<u2"), r"\(3, 3\) of uint16"),
        (np.zeros((), "<u2"), r"\(\) of uint16"),
    ],
)
def test_an_array_of_another_type_or_size_is_refused(tokens_file, array, found):
    np.save(tokens_file, array)
    with pytest.raises(FormatError, match=rf"holds {found}; \(9,\) of uint16 is wanted: delete 00003"):
        open_array(tokens_file, UINT16, 9)


@pytest.mark.parametrize("change", [-18, -2, -1, 1, 2, 4096])
def test_an_array_file_of_another_length_than_its_header_says_is_refused(tokens_file, change):
    contents = tokens_file.read_bytes()
    tokens_file.write_bytes(contents[:change] if change < 0 else contents + bytes(change))
    found = len(contents) + change
    with pytest.raises(FormatError, match=rf"is {found:,} bytes; {len(contents)} are wanted: delete 00003"):
        open_array(tokens_file, UINT16, 9)


def test_a_flipped_bit_in_an_array_header_is_refused_in_one_line_or_changes_nothing(tmp_path):
    path, ids = tmp_path / "00000.npy", np.arange(10_000, dtype=UINT16)  # more data than a header may be long
    np.save(path, ids)
    header_bits = 8 * (path.stat().st_size - ids.nbytes)
    with open(path, "r+b") as file:
        for bit in range(header_bits):
            flip(file, bit)
            try:
                np.testing.assert_array_equal(open_array(path, UINT16, ids.size), ids)
            except FormatError as error:
                assert "\n" not in str(error)  # noqa: PT017 -- most flips raise, a few change nothing
            flip(file, bit)


def flip(file, bit):
    file.seek(bit // 8)
    byte = file.read(1)[0]
    file.seek(bit // 8)
    file.write(bytes([byte ^ (1 << bit % 8)]))
    file.flush()
