"""A sample is the same every time, of the size asked for, and of everywhere."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.sampling import MIN_PIECE_BYTES, SPREAD, chosen, open_sample
from preprocess.sources import BadFileError
from tests.helpers import write_parquet


def texts_of(directory, size_bytes, label=None):
    sample = open_sample(str(directory), "text", size_bytes)
    return [text for texts, _ in sample.labelled(label) for text in texts.to_pylist()]


def numbered(count, size=100):
    """Texts that say which they are, of `size` bytes."""
    return [f"{number:08d}".ljust(size, "x") for number in range(count)]


def numbers(texts):
    return np.array([int(text[:8]) for text in texts])


def size_of(texts):
    return sum(len(text.encode()) for text in texts)


def test_a_sample_is_all_of_a_small_input_but_null_and_empty_texts(tmp_path):
    write_parquet(tmp_path / "a.parquet", [None, "one", "", "two", None], rows_per_group=2)
    write_parquet(tmp_path / "b.parquet", ["", None])
    write_parquet(tmp_path / "c.parquet", ["x" * 100_000])
    assert texts_of(tmp_path, 1 << 20) == ["one", "two", "x" * 100_000]
    assert open_sample(str(tmp_path), "text", 1 << 20).expected_bytes < 110_000


def test_a_sample_of_real_text_is_of_about_the_size_asked_for_and_of_both_files(small_input, real_texts):
    assert texts_of(small_input, 1 << 30) == real_texts
    few = texts_of(small_input, 100_000)
    assert 70_000 < size_of(few) < 130_000
    assert set(few) & set(real_texts[:200])
    assert set(few) & set(real_texts[200:])


def test_a_sample_does_not_depend_on_where_and_when_the_files_are(small_input, tmp_path):
    for path in sorted(small_input.iterdir(), reverse=True):
        shutil.copy(path, tmp_path / path.name)
    assert texts_of(tmp_path, 100_000) == texts_of(small_input, 100_000)


@pytest.mark.parametrize("size_bytes", [300_000, 900_000])
def test_every_file_of_many_is_reached(tmp_path, size_bytes):
    for number in range(300):
        texts = [f"{number:08d}{row:08d}".ljust(100, "x") for row in range(200)]
        write_parquet(tmp_path / f"{number}.parquet", texts, rows_per_group=50)
    few = texts_of(tmp_path, size_bytes)
    assert abs(size_of(few) - size_bytes) < 2 * MIN_PIECE_BYTES
    gaps = np.diff([0, *np.unique(numbers(few)), 299])
    assert gaps.max() <= max(1, -(-300 * MIN_PIECE_BYTES // size_bytes))


def test_many_tiny_files_give_an_even_sample(tmp_path):
    for number in range(600):
        write_parquet(tmp_path / f"{number}.parquet", numbered(600)[number : number + 1])
    found = numbers(texts_of(tmp_path, 20_000))
    assert np.diff([0, *found, 599]).max() <= 160  # it begins when a piece is owed, and then takes every third
    assert len(found) > 100


def test_a_sample_of_over_ten_thousand_row_groups_is_even(tmp_path):
    write_parquet(tmp_path / "a.parquet", numbered(12_000, 1000), rows_per_group=1)
    found = numbers(texts_of(tmp_path, 2_000_000))
    assert abs(len(found) - 2000) < 2 * MIN_PIECE_BYTES / 1000
    shares = np.histogram(found, bins=20, range=(0, 12_000))[0]
    assert shares.min() > 70
    assert shares.max() < 130


def test_one_huge_row_group_is_read_from_its_start_to_its_end(tmp_path):
    write_parquet(tmp_path / "a.parquet", numbered(20_000), rows_per_group=20_000)
    found = numbers(texts_of(tmp_path, 400_000))
    assert abs(len(found) - 4000) <= 2 * MIN_PIECE_BYTES / 100
    shares = np.histogram(found, bins=5, range=(0, 20_000))[0]
    assert shares.min() > 600


def test_of_a_huge_row_group_no_more_is_read_than_a_multiple_of_what_is_taken(tmp_path):
    write_parquet(tmp_path / "a.parquet", numbered(100_000), rows_per_group=100_000)
    found = numbers(texts_of(tmp_path, 40_000))
    assert found.max() < 1.1 * SPREAD * 400


def test_one_huge_document_is_not_half_of_the_sample(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["\u00e9" * 500_000, *numbered(10_000)], rows_per_group=2000)
    texts = texts_of(tmp_path, 200_000)
    assert texts[0] == "\u00e9" * (MIN_PIECE_BYTES // 2)
    assert abs(size_of(texts) - 200_000) < 2 * MIN_PIECE_BYTES


@pytest.mark.parametrize("size_bytes", [1, 100, 5_000])
def test_a_budget_smaller_than_a_row_group_is_kept(tmp_path, size_bytes):
    write_parquet(tmp_path / "a.parquet", numbered(5000), rows_per_group=1000)
    assert size_of(texts_of(tmp_path, size_bytes)) <= size_bytes + 4


def test_texts_that_parquet_stores_once_do_not_break_the_budget(tmp_path):
    """Its footer promises a few kilobytes of these ten megabytes."""
    table = pa.table({"text": pa.array(["x" * 1000] * 10_000).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=1000)
    assert size_of(texts_of(tmp_path, 1_000_000)) <= 2_000_000


def test_row_groups_of_nothing_are_no_part_of_it(tmp_path):
    write_parquet(tmp_path / "a.parquet", [None] * 50 + [""] * 50 + numbered(3000) + [None] * 50, rows_per_group=50)
    found = texts_of(tmp_path, 60_000)
    assert all(found)
    assert 40_000 < size_of(found) <= 60_000 + 100


def test_labels_stay_with_their_texts(tmp_path):
    texts = [None if number % 7 == 0 else text for number, text in enumerate(numbered(3000))]
    labels = [text and text[:8] for text in texts]
    pq.write_table(pa.table({"language": labels, "text": texts}), tmp_path / "a.parquet", row_group_size=700)
    write_parquet(tmp_path / "b.parquet", numbered(10))
    for size_bytes in (50_000, 1 << 20):
        rows = list(open_sample(str(tmp_path), "text", size_bytes).labelled("language"))
        told = [
            (text[:8], label)
            for texts, found in rows
            if found
            for text, label in zip(texts.to_pylist(), found.to_pylist(), strict=True)
        ]
        assert len(told) > 300
        assert all(start == label for start, label in told)
        assert any(found is None for _, found in rows) == (size_bytes == 1 << 20)


def test_a_damaged_file_is_named_or_left_where_it_breaks(bad_data, tmp_path):
    shutil.copy(bad_data / "corrupt_page.parquet", tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet", numbered(10))
    sample = open_sample(str(tmp_path), "text", 1 << 30)
    with pytest.raises(BadFileError, match=r"a\.parquet"):
        list(sample)
    object.__setattr__(sample, "skip_bad", True)
    assert numbers([text for texts in sample for text in texts.to_pylist()][-10:]).tolist() == list(range(10))


@given(
    st.lists(st.integers(0, 50), max_size=40),
    st.integers(0, 1000),
    st.integers(1, 60),
    st.integers(1, 16),
    st.integers(0, 2000),
)
def test_what_is_chosen_does_not_depend_on_how_a_row_group_is_cut(sizes, first, piece, spread, cut):
    sizes, period = np.array(sizes, np.int64), piece * spread
    whole = chosen(sizes, first, piece, period, 1e9)
    one, two = sizes[: cut % (len(sizes) + 1)], sizes[cut % (len(sizes) + 1) :]
    parts = [chosen(one, first, piece, period, 1e9), chosen(two, first + one.sum(), piece, period, 1e9)]
    assert whole.tolist() == np.concatenate(parts).tolist()
    owed = cut / 2
    taken = np.minimum(sizes[chosen(sizes, first, piece, period, owed)], piece).sum()
    assert taken < owed + piece


def test_the_budget_of_the_report_is_checked_like_that_of_the_training(tokenizer_path, small_input):
    from tests.helpers import run_cli

    done = run_cli("preprocess", "tokenizer-report", tokenizer_path, small_input, "--sample-megabytes", 0)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--sample-megabytes is too small" in done.stderr
