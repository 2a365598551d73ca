import hashlib
import json
import threading
from concurrent.futures import CancelledError
from itertools import chain

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess import jsonl
from preprocess.jsonl import JsonLines
from preprocess.sources import BadFileError, Footer, read_footer, read_rows, read_texts
from preprocess.streams import Plain
from tests.helpers import write_jsonl

STRING = pa.large_string()
NAMES = ("a.jsonl", "a.jsonl.zst")


@pytest.fixture
def small_groups(monkeypatch):
    """Row groups of 1,000 bytes."""
    monkeypatch.setattr(jsonl, "GROUP_BYTES", 1000)


def all_rows(path, column="text", others=(), max_batch_bytes=1 << 20):
    footer = read_footer(path, path.parent, column, others)
    return [*read_rows(path, range(len(footer.row_groups)), column, others, max_batch_bytes)]


@pytest.mark.parametrize("name", NAMES)
def test_a_first_reading_gives_what_a_footer_gives(tmp_path, small_groups, name):
    texts = [None if i % 7 == 0 else f"some words {i} " * (1 + i % 3) for i in range(100)]
    path = write_jsonl(tmp_path / "in" / name, texts, frames=3)
    footer = read_footer(path, tmp_path, "text")
    assert (footer.path, footer.size_bytes, footer.num_rows) == (f"in/{name}", path.stat().st_size, 100)
    assert footer.identity == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(footer.row_groups) > 3
    rows = [
        list(chain.from_iterable(batch.to_pylist() for batch in read_texts(path, range(i, i + 1), "text")))
        for i in range(len(footer.row_groups))
    ]
    assert [group.num_rows for group in footer.row_groups] == [len(group) for group in rows]
    assert list(chain.from_iterable(rows)) == texts
    assert footer.text_bytes == pytest.approx(sum(len(text or "") for text in texts), rel=0.05)


@pytest.mark.parametrize("name", NAMES)
@given(
    texts=st.lists(st.none() | st.text(max_size=40) | st.just("a" * 3000), max_size=30),
    start=st.integers(0, 20),
    size=st.integers(0, 20),
    max_batch_bytes=st.integers(1, 4000),
)
@settings(max_examples=40, deadline=None)
def test_any_row_groups_give_their_rows_in_bounded_batches(tmp_path_factory, name, texts, start, size, max_batch_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "GROUP_BYTES", 100)
        path = write_jsonl(tmp_path_factory.mktemp("any") / name, texts, frames=2)
        footer = read_footer(path, path.parent, "text")
        groups = range(len(footer.row_groups))[start : start + size]
        batches = [batch.to_pylist() for batch in read_texts(path, groups, "text", max_batch_bytes)]
    first = sum(group.num_rows for group in footer.row_groups[: groups.start])
    wanted = sum(footer.row_groups[i].num_rows for i in groups)
    assert list(chain.from_iterable(batches)) == texts[first : first + wanted]
    assert footer.num_rows == len(texts)
    for batch in batches:
        assert len(batch) == 1 or sum(len((text or "").encode()) for text in batch) <= max_batch_bytes


def test_a_file_that_begins_with_little_text_is_taken_for_half_text(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "x": "b" * 1000}] * 100)
    assert read_footer(path, tmp_path, "text").text_bytes == pytest.approx(path.stat().st_size / 2, rel=0.01)


def test_a_long_line_is_in_the_row_group_in_which_it_begins(tmp_path, small_groups):
    texts = ["a", "b" * 5000, "c"]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    groups = read_footer(path, tmp_path, "text").row_groups
    assert [group.num_rows for group in groups] == [2, 0, 0, 0, 0, 1]
    assert [[t for b in read_texts(path, range(i, i + 1), "text") for t in b.to_pylist()] for i in range(6)] == [
        texts[:2], [], [], [], [], texts[2:],
    ]  # fmt: skip


def test_the_columns_are_looked_for_in_the_first_row_group_with_rows(tmp_path, small_groups):
    (tmp_path / "a.jsonl").write_bytes(b"\n" * 3000 + b'{"text": "a", "x": 1}\n')
    assert read_footer(tmp_path / "a.jsonl", tmp_path, "text", ["x"]).num_rows == 1
    late = [{"text": "a" * 1200}, {"text": "b", "x": 1}]
    path = write_jsonl(tmp_path / "b.jsonl", late)
    with pytest.raises(
        BadFileError,
        match=r"b\.jsonl has no column 'x' in its first 1 rows \(they have text\): name columns that every file has",
    ):
        read_footer(path, tmp_path, "text", ["x"])
    with pytest.raises(BadFileError, match=r"no column 'Text' .*\(they have text\): name the text with --text-column"):
        read_footer(path, tmp_path, "Text")
    wide = write_jsonl(tmp_path / "c.jsonl", [{f"column{i}": 1 for i in range(100)}])
    with pytest.raises(BadFileError, match=r"column18, column19, \.\.\.\)"):
        read_footer(wide, tmp_path, "text")


@pytest.mark.parametrize("name", NAMES)
def test_other_columns_come_beside_their_rows(tmp_path, small_groups, name):
    rows = [
        {"text": f"text {i}", "n": i, "s": f"2020-01-{i % 28 + 1:02}", "b": i % 2 == 0, "x": {"i": [i]}, "z": None}
        for i in range(200)
    ]
    path = write_jsonl(tmp_path / name, rows, frames=4)
    others = ["s", "x", "n", "z", "b", "text"]
    batches = all_rows(path, others=others, max_batch_bytes=100)
    assert len(batches) > 10
    assert {batch.others.schema for batch in batches} == {
        pa.schema([*zip(others, [STRING, STRING, pa.float64(), pa.null(), pa.bool_(), STRING], strict=True)])
    }
    found = [row for batch in batches for row in batch.others.to_pylist()]
    assert found == [{**{name: row[name] for name in others}, "x": json.dumps(row["x"])} for row in rows]
    assert [text for batch in batches for text in batch.texts.to_pylist()] == [row["text"] for row in rows]
    frame = pl.concat([pl.from_arrow(batch.others) for batch in batches])
    assert frame.filter((pl.col("n") > 197) & pl.col("b"))["text"].to_list() == ["text 198"]


@pytest.mark.parametrize(
    ("first", "later", "kind"),
    [
        (1, 0.5, pa.float64()),
        (0.5, 1, pa.float64()),
        (None, 2, pa.float64()),
        (1, None, pa.float64()),
        (None, "2020-01-01", pa.large_string()),
        ("2020-01-01", "no date", pa.large_string()),
        ("2020-01-01T00:00:00Z", None, pa.large_string()),
        (None, True, pa.bool_()),
        ([1], {"a": "b"}, pa.large_string()),
        (None, None, pa.null()),
    ],
)
def test_a_column_has_the_same_type_in_every_batch_of_a_file(tmp_path, small_groups, first, later, kind):
    rows = [{"text": "a" * 300, "x": first} for _ in range(20)] + [{"text": "a" * 300, "x": later} for _ in range(20)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    num_groups = len(read_footer(path, tmp_path, "text", ["x"]).row_groups)
    alone = [batch for i in range(num_groups) for batch in read_rows(path, range(i, i + 1), "text", ["x"])]
    assert {batch.others.schema for batch in alone} == {pa.schema([("x", kind)])}
    values = [json.dumps(row["x"]) if isinstance(row["x"], list | dict) else row["x"] for row in rows]
    assert [value for batch in alone for value in batch.others["x"].to_pylist()] == values


@pytest.mark.parametrize(
    ("first", "later", "reason"),
    [
        (1, "1", "line 21 has 'x', which is a string, not a number as where it is first in the file"),
        ("1", 1, "line 21 has 'x', which is a number, not a string as where it is first in the file"),
        (1, True, "line 21 has 'x', which is a boolean, not a number as where it is first in the file"),
        (1, 2**53 + 1, "line 21 has 'x', which is an integer that float64 does not hold exactly: write such numbers"),
    ],
)
def test_a_column_of_two_kinds_is_refused_where_the_second_begins(tmp_path, small_groups, first, later, reason):
    rows = [{"text": "a" * 300, "x": first} for _ in range(20)] + [{"text": "a" * 300, "x": later} for _ in range(20)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(BadFileError, match=rf"a\.jsonl: {reason}"):
        all_rows(path, others=["x"])
    assert sum(len(batch.texts) for batch in all_rows(path)) == 40  # nobody asked for it


def test_without_other_columns_there_is_nothing_beside_the_text(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "x": 1}])
    ((texts, others),) = read_rows(path, range(1), "text")
    assert (texts.to_pylist(), others.num_columns) == (["a"], 0)


def test_a_line_at_fault_is_counted_from_the_first_of_the_file(tmp_path, small_groups):
    lines = [b"", b'{"text": "a"}', b"  "] * 200
    lines[500] = b"{"
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(
        BadFileError, match=r"a\.jsonl: line 501 is not valid JSON \(.*: mend or remove the line, or mo"
    ):
        [*read_texts(tmp_path / "a.jsonl", range(4), "text")]


def test_a_file_that_is_changed_is_looked_into_again(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "x": 1}])
    assert all_rows(path, others=["x"])[0].others.schema.types == [pa.float64()]
    write_jsonl(path, [{"text": "a", "x": "word"}])
    assert all_rows(path, others=["x"])[0].others.schema.types == [pa.large_string()]


def test_a_reading_that_nobody_waits_for_ends(tmp_path):
    path, stop = write_jsonl(tmp_path / "a.jsonl", ["a"]), threading.Event()
    assert isinstance(JsonLines(Plain).read_footer(path, tmp_path, "text", (), stop), Footer)
    stop.set()
    with pytest.raises(CancelledError):
        JsonLines(Plain).read_footer(path, tmp_path, "text", (), stop)


def test_a_file_that_is_gone_has_no_identity(tmp_path):
    with pytest.raises(BadFileError, match=r"a\.jsonl cannot be read \(No such file or directory\)"):
        JsonLines(Plain).identity(tmp_path / "a.jsonl")
