import shutil
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.skip import read_footers
from preprocess.sources import (
    RowGroup,
    find_sources,
    has_footer,
    natural_key,
    read_footer,
    read_rows,
    read_texts,
    try_footers,
)
from shared.errors import InputError
from tests import jsonl_cases
from tests.helpers import read_column, write_jsonl, write_parquet


@pytest.mark.parametrize(
    "ordered",
    [
        ["000_00002.parquet", "000_00010.parquet", "002_9.parquet", "002_10.parquet"],
        ["1", "2", "10", "a", "a1", "a2", "a10", "b"],  # a number goes before a letter in the same place
        ["a/2", "a/10/1", "a/10/x", "b/1"],
        ["a.parquet", "b-2.parquet", "b-10.parquet"],
    ],
)
def test_natural_order_counts_numbers_by_value(ordered):
    assert sorted(sorted(ordered, key=hash), key=natural_key) == ordered


def test_natural_order_is_total_where_values_are_equal():
    assert sorted(["1a", "01a", "001a"], key=natural_key) == ["001a", "01a", "1a"]


def test_only_input_files_of_what_was_given_are_found(tmp_path):
    for name in ("in/2.parquet", "in/10.parquet", "in/sub/1.parquet", "in/.cache/3.parquet", "other/4.parquet"):
        write_parquet(tmp_path / name, ["a"])
    for name in ("in/notes.txt", "in/a.json", "in/a.jsonl.gz", "in/a.zst", "in/jsonl", "in/a.parquet.zst"):
        (tmp_path / name).write_text("no")

    def found(data):
        root, files = find_sources(str(data))
        return [file.relative_to(root).as_posix() for file in files]

    assert found(tmp_path / "in") == ["2.parquet", "10.parquet", "sub/1.parquet"]
    assert found(tmp_path / "in/*.parquet") == ["2.parquet", "10.parquet"]
    assert found(tmp_path / "*/[24]*") == ["in/2.parquet", "other/4.parquet"]
    assert found(tmp_path / "in/2.parquet") == ["2.parquet"]


def test_files_of_all_kinds_stand_in_one_natural_order(tmp_path):
    names = ["2.jsonl", "2.parquet", "3.jsonl.zst", "9.jsonl.zst", "10.parquet", "11.jsonl"]
    for name in names:
        (write_parquet if name.endswith(".parquet") else write_jsonl)(tmp_path / name, [name])
    assert [file.name for file in find_sources(str(tmp_path))[1]] == names
    assert [file.name for file in find_sources(str(tmp_path / "*.jsonl*"))[1]] == [n for n in names if "jsonl" in n]
    assert [file.name for file in find_sources(str(tmp_path / "9.jsonl.zst"))[1]] == ["9.jsonl.zst"]
    texts = [batch.to_pylist() for name in names for batch in read_texts(tmp_path / name, range(1), "text")]
    assert texts == [[name] for name in names]
    assert [name for name in names if has_footer(tmp_path / name)] == ["2.parquet", "10.parquet"]


def test_a_directory_whose_name_is_a_pattern_is_that_directory(tmp_path):
    write_parquet(tmp_path / "a[1]/x.parquet", ["a"])
    assert find_sources(str(tmp_path / "a[1]"))[1] == [tmp_path / "a[1]/x.parquet"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "missing",
            r"missing not found: a directory, a glob pattern or a \*\.parquet, \*\.jsonl or \*\.jsonl\.zst file is",
        ),
        ("", r"no \*\.parquet, \*\.jsonl or \*\.jsonl\.zst file in .*: name the directory"),
        ("*.parquet", r"no \*\.parquet, .* file in .*\*\.parquet"),
        ("a.json", r"a\.json is no \*\.parquet, \*\.jsonl or \*\.jsonl\.zst file: give it the ending of what it is"),
    ],
)
def test_an_input_without_input_files_is_refused(tmp_path, name, message):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(InputError, match=message):
        find_sources(str(tmp_path / name))


def test_a_footer_gives_rows_and_text_of_each_row_group_and_changes_with_the_file(tmp_path):
    nested = pa.array([{"x": 1, "text": "no"}] * 3, pa.struct([("x", pa.int64()), ("text", pa.string())]))
    table = pa.table({"before": nested, "text": ["a" * 100, "b" * 50, None]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2, compression="none", use_dictionary=False)
    footer = read_footer(tmp_path / "a.parquet", tmp_path, "text")
    assert (footer.path, footer.num_rows, [group.num_rows for group in footer.row_groups]) == ("a.parquet", 3, [2, 1])
    assert footer.row_groups[1].text_bytes < 150 <= footer.row_groups[0].text_bytes < 400
    assert footer.text_bytes == sum(group.text_bytes for group in footer.row_groups)
    write_parquet(tmp_path / "b.parquet", ["a", "b", None])
    assert read_footer(tmp_path / "b.parquet", tmp_path, "text").identity != footer.identity
    assert isinstance(footer.row_groups[0], RowGroup)


def test_batches_are_bounded_in_bytes_and_a_long_text_stands_alone(tmp_path):
    texts = ["x" * 400, None, "", "y" * 5000, "z" * 400, "w" * 400, "v" * 400]
    path = write_parquet(tmp_path / "a.parquet", texts, rows_per_group=5)
    batches = [batch.to_pylist() for batch in read_texts(path, range(2), "text", 1000)]
    assert list(chain.from_iterable(batches)) == texts
    assert [sum(len(text or "") for text in batch) for batch in batches] == [400, 5000, 400, 800]


def test_other_columns_come_beside_the_text_as_they_are_stored(tmp_path):
    columns = {
        "text": pa.array(["a" * 100, None, "", "b"] * 50),
        "n": pa.array([1, None, 3, 4] * 50, pa.int16()),
        "nested": pa.array([{"x": [i, "a"][:1], "y": None} for i in range(200)]),
        "s": pa.array(["en", "de"] * 100).dictionary_encode(),
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=30)
    others = ["s", "nested", "n", "text"]
    read_footer(path, tmp_path, "text", others)
    batches = [*read_rows(path, range(1, 5), "text", others, 500)]
    assert len(batches) > 4
    stored = pa.table(columns).select(others).slice(30, 120)
    assert pa.Table.from_batches([batch.others for batch in batches]).equals(stored)
    assert [text for texts, _ in batches for text in texts.to_pylist()] == stored["text"].to_pylist()
    assert all(len(texts) == others.num_rows for texts, others in batches)
    alone = [*read_rows(path, range(1), "text")]
    assert [texts.to_pylist() for texts, _ in alone] == [columns["text"].slice(0, 30).to_pylist()]
    assert [others.num_columns for _, others in alone] == [0]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.zst"])
def test_other_columns_must_be_there(tmp_path, name):
    path = (write_parquet if name == "a.parquet" else write_jsonl)(tmp_path / name, ["a"])
    assert read_footer(path, tmp_path, "text", ["id"]).num_rows == 1
    message = r"has no column 'lang' (in its first 1 rows )?\((it has|they have) id, text\): name columns that every"
    with pytest.raises(InputError, match=message):
        read_footer(path, tmp_path, "text", ["id", "lang"])


def test_another_column_that_is_not_sound_is_refused(tmp_path, bad_data):
    table = pq.ParquetFile(bad_data / "invalid_utf8_string.parquet").read()
    pq.write_table(table.rename_columns(["x" if name == "text" else name for name in table.column_names])
                   .append_column("text", pa.array(["a"] * len(table))), tmp_path / "a.parquet")  # fmt: skip
    assert sum(len(texts) for texts in read_texts(tmp_path / "a.parquet", range(1), "text")) == len(table)
    with pytest.raises(InputError, match=r"a\.parquet: row group 0 has a value that cannot be read \(.*UTF8"):
        list(read_rows(tmp_path / "a.parquet", range(1), "text", ["x"]))


def test_the_first_bad_file_is_the_first_in_order_however_many_are_read_at_once(tmp_path):
    paths = [write_jsonl(tmp_path / f"{i}.jsonl", ["a"] * (1000 - i)) for i in range(30)]
    for i in (7, 20):
        paths[i].write_bytes(paths[i].read_bytes() + b"{")
    found = [*try_footers(paths, tmp_path, "text")]
    assert [getattr(footer, "num_rows", None) for footer in found] == [
        None if i in (7, 20) else 1000 - i for i in range(30)
    ]
    with pytest.raises(InputError, match=r"7\.jsonl: line 994 is not valid JSON"):
        read_footers(paths, tmp_path, "text", skip_bad=False)


def test_row_groups_are_read_alone(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [str(i) for i in range(10)], rows_per_group=3)
    assert [batch.to_pylist() for batch in read_texts(path, range(1, 3), "text")] == [["3", "4", "5"], ["6", "7", "8"]]


def test_a_file_cut_anywhere_is_refused(tmp_path, real_texts):
    whole = write_parquet(tmp_path / "a.parquet", real_texts[:20]).read_bytes()
    for size in (0, 1, 4, 8, 11, len(whole) // 2, len(whole) - 6, len(whole) - 1):
        (tmp_path / "a.parquet").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"a\.parquet is (empty|cut short|not a parquet file)"):
            read_footer(tmp_path / "a.parquet", tmp_path, "text")


def test_a_damaged_footer_and_an_unreadable_path_are_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["a"])
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[-8:-4], "little")
    data[-8 - length : -8] = b"\xff" * length
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"has a damaged footer .*download it again"):
        read_footer(path, tmp_path, "text")
    (tmp_path / "b.parquet").mkdir()
    with pytest.raises(InputError, match=r"cannot be read .*check the path"):
        read_footer(tmp_path / "b.parquet", tmp_path, "text")


def test_the_column_is_matched_exactly_and_must_be_one_column_of_strings(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["a"], column="Text")
    with pytest.raises(InputError, match=r"has no column 'text' \(it has id, Text\): name the text with --text-column"):
        read_footer(tmp_path / "a.parquet", tmp_path, "text")
    assert read_footer(tmp_path / "a.parquet", tmp_path, "Text").num_rows == 1
    twice = pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"])
    pq.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"has 2 columns 'text'"):
        read_footer(tmp_path / "b.parquet", tmp_path, "text")
    pq.write_table(pa.table({"text": [1]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="column 'text' is int64, not a string: name the text with --text-column"):
        read_footer(tmp_path / "c.parquet", tmp_path, "text")


def test_a_flipped_page_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"some words {i}" for i in range(300)]})
    pq.write_table(table, path, row_group_size=100, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[data.index(b"some words 150")] ^= 1  # still valid UTF-8: nothing but the checksum can tell
    path.write_bytes(data)
    assert len(next(read_texts(path, range(1), "text"))) == 100
    with pytest.raises(InputError, match=r"a\.parquet: row group 1 cannot be read .*damaged; download it again"):
        list(read_texts(path, range(3), "text"))


def test_text_that_is_not_utf8_is_named_by_its_row(bad_data, tmp_path):
    with pytest.raises(InputError, match=r"row 2 \(row group 0\) is not valid UTF-8: write the file again"):
        list(read_texts(bad_data / "invalid_utf8_string.parquet", range(1), "text"))


def test_messages_hold_no_control_sequence_of_a_file_name(tmp_path):
    (tmp_path / "a\x1b[2J.parquet").write_bytes(b"no")
    with pytest.raises(InputError) as caught:
        read_footer(tmp_path / "a\x1b[2J.parquet", tmp_path, "text")
    assert str(caught.value).isprintable()


VALID = [
    "all_null_texts",
    "empty_strings",
    "null_texts",
    "text_null_type",
    "zero_rows",
    "zero_row_groups",
    "empty_row_groups",
    "one_row_per_group",
    "duplicate_rows",
    "extra_and_reordered_columns",
    "text_only",
    "two_text_case",
    "large_string",
    "dictionary_string",
    "string_view",
    "codec_none",
    "codec_snappy",
    "codec_gzip",
    "codec_brotli",
    "codec_lz4",
    "codec_zstd",
    "page_v2_delta",
    "no_arrow_schema",
    "special_tokens",
    "nul_and_control",
    "unicode_torture",
    "long_lines",
    "huge_document",
]
INVALID = {
    "truncated_mid": "is cut short",
    "truncated_footer": "is cut short",
    "bad_magic": "is not a parquet file",
    "zero_byte": "is empty",
    "magic_only": "is cut short",
    "text_file": "is not a parquet file",
    "gzip_jsonl": "is not a parquet file",
    "no_text_column": "has no column 'text' (it has id, ",
    "text_column_renamed": "has no column 'text' (it has content, ",
    "text_int64": "is int64, not a string",
    "text_list": "is list<element: string>, not a string",
    "text_struct": "is struct<body: string>, not a string",
    "invalid_utf8_binary": "is binary, not a string",
    "invalid_utf8_string": "row 2 (row group 0) is not valid UTF-8",
    "corrupt_page": "row group 0 cannot be read",
}


def test_every_odd_file_is_in_one_of_the_tables(bad_data):
    assert sorted(path.stem for path in bad_data.glob("*.parquet")) == sorted([*VALID, *INVALID])


@pytest.mark.parametrize("name", VALID)
def test_a_valid_odd_file_gives_exactly_its_texts(bad_data, name):
    path = bad_data / f"{name}.parquet"
    footer = read_footer(path, bad_data, "text")
    batches = read_texts(path, range(len(footer.row_groups)), "text")
    assert [text for batch in batches for text in batch.to_pylist()] == read_column(path)


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_file_is_one_clear_line_and_exit_code_2(bad_data, tokenizer_path, tmp_path, capsys, name):
    from preprocess.__main__ import main

    (tmp_path / "in").mkdir()
    shutil.copy(bad_data / f"{name}.parquet", tmp_path / "in")
    arguments = ["tokenize", str(tmp_path / "in"), str(tmp_path / "out"), "--tokenizer", str(tokenizer_path)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'in'}")
    assert error.count("\n") == 1
    assert f"{name}.parquet" in error
    assert INVALID[name] in error
    assert not (tmp_path / "out/index.json").exists()


@pytest.mark.parametrize("name", jsonl_cases.VALID)
def test_a_valid_odd_json_lines_file_gives_exactly_its_texts(tmp_path, name):
    file_name, data, texts = jsonl_cases.VALID[name]
    path = tmp_path / file_name
    path.write_bytes(data)
    footer = read_footer(path, tmp_path, "text")
    batches = read_texts(path, range(len(footer.row_groups)), "text")
    assert [text for batch in batches for text in batch.to_pylist()] == texts
    assert footer.num_rows == len(texts)


@pytest.mark.parametrize("name", jsonl_cases.FAR_IN)
def test_a_bad_line_far_in_is_named(tmp_path, name):
    file_name, data, message = jsonl_cases.FAR_IN[name]
    path = tmp_path / file_name
    path.write_bytes(data)
    num_groups = len(read_footer(path, tmp_path, "text").row_groups)
    with pytest.raises(InputError) as caught:
        list(read_texts(path, range(num_groups), "text"))
    assert message in str(caught.value)


FAR_IN = [f"far in: {name}" for name in ("bad line in zstd", "half a character")]


@pytest.mark.parametrize("name", [*jsonl_cases.INVALID, *FAR_IN])
def test_an_invalid_json_lines_file_is_one_clear_line_and_exit_code_2(tokenizer_path, tmp_path, capsys, name):
    from preprocess.__main__ import main

    cases = jsonl_cases.INVALID | {f"far in: {name}": case for name, case in jsonl_cases.FAR_IN.items()}
    file_name, data, message = cases[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / file_name).write_bytes(data)
    arguments = ["tokenize", str(tmp_path / "in"), str(tmp_path / "out"), "--tokenizer", str(tokenizer_path)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'in' / file_name}")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out/index.json").exists()


def test_a_file_that_is_there_compressed_too_is_refused(tmp_path):
    for name in ("a.jsonl.zst", "b.jsonl", "b.jsonl.zst"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"b.jsonl is there as b.jsonl.zst too: move one of them away, or give a glob"):
        find_sources(str(tmp_path))
    assert [file.name for file in find_sources(str(tmp_path / "*.zst"))[1]] == ["a.jsonl.zst", "b.jsonl.zst"]
