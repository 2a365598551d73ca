import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.batches import Rows, text_sizes
from preprocess.digests import is_drawn, text_digests
from preprocess.select import Fate, Selector, kept_texts
from shared.errors import ConfigError
from shared.format import Selection

D, N, E, F, R, O = Fate.DOCUMENT, Fate.NULL, Fate.EMPTY, Fate.FILTERED, Fate.DUPLICATE, Fate.OTHER_SPLIT  # noqa: E741


def strings(texts):
    return pa.array(texts, pa.large_string())


def rows_of(texts, **others):
    return Rows(strings(texts), pa.RecordBatch.from_pydict(others))


@pytest.mark.parametrize(
    ("selection", "duplicates", "wanted"),
    [
        (Selection(), [], [D, N, E, D, D]),
        (Selection('language == "en"'), [], [D, N, E, F, F]),  # a null is not wanted
        (Selection("score > 0.5 or language.is_null()"), [], [D, N, E, F, D]),
        (Selection(), [10, 11, 13], [R, N, E, R, D]),
        (Selection('language == "en"'), [10, 13], [R, N, E, F, F]),
        (Selection(drop_duplicates=True), [3, 9, 15, 99], [D, N, E, D, D]),  # rows of other batches
        (Selection(validation_share=0.999999), [], [O, N, E, O, O]),
        (Selection(validation_share=0.999999, split="validation"), [], [D, N, E, D, D]),
    ],
)
def test_every_row_has_one_fate_and_the_first_reason_counts(selection, duplicates, wanted):
    rows = rows_of(["a", None, "", "b", "c"], language=["en", "en", "en", "de", None], score=[0.9, 0.9, 0.9, 0.1, 0.2])
    fates = Selector(selection, np.array(duplicates, np.uint64)).fates(rows, 10)
    assert fates.tolist() == wanted


def test_a_whole_selector_knows_no_splits():
    fates = Selector(Selection(validation_share=0.999999), whole=True).fates(rows_of(["a", "b"]), 0)
    assert fates.tolist() == [D, D]


@given(st.lists(st.text()), st.floats(0, 1, exclude_max=True))
def test_every_text_is_in_exactly_one_split_and_equal_texts_are_together(texts, share):
    rows = rows_of([*texts, *texts])
    fates = {
        split: Selector(Selection(validation_share=share, split=split)).fates(rows, 0)
        for split in ("train", "validation")
    }
    if share:
        in_one = (fates["train"] == D).astype(int) + (fates["validation"] == D)
        assert in_one.tolist() == [int(bool(text)) for text in [*texts, *texts]]
    assert fates["train"][: len(texts)].tolist() == fates["train"][len(texts) :].tolist()


def test_the_share_is_about_what_was_asked_for_and_a_larger_one_holds_a_smaller():
    digests = text_digests(strings([f"text {number}" for number in range(20_000)]))
    small, large = is_drawn(digests, 0.01), is_drawn(digests, 0.05)
    assert 140 < small.sum() < 260
    assert 850 < large.sum() < 1150
    assert not (small & ~large).any()
    assert not is_drawn(digests, 0.0).any()


@given(st.lists(st.one_of(st.none(), st.text())), st.integers(0, 3))
def test_digests_and_sizes_are_those_of_the_bytes(texts, cut):
    import hashlib

    array = strings(texts).slice(cut)
    wanted = [(text or "").encode() for text in texts[cut:]]
    assert text_sizes(array).tolist() == [len(text) for text in wanted]
    found = text_digests(array)
    assert [row.tobytes() for row in found] == [hashlib.blake2b(text, digest_size=16).digest() for text in wanted]


@pytest.mark.parametrize(
    ("fates", "wanted"),
    [([D, N, E, D], ["a", "", "", "b"]), ([F, N, E, D], ["", "", "", "b"]), ([D, N, E, R], ["a", "", "", ""])],
)
def test_what_is_no_document_is_an_empty_text(fates, wanted):
    assert kept_texts(strings(["a", None, "", "b"]), np.array(fates, np.uint8)).to_pylist() == wanted


def test_texts_that_are_all_documents_are_not_copied():
    texts = strings(["a", "b"])
    assert kept_texts(texts, np.zeros(2, np.uint8)) is texts


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("score", "it gives Float64, not true or false"),
        ("score > language", "cannot compare string with numeric type (f64)"),
        ('language.str.contains("(")', "regex error: regex parse error:"),
    ],
)
def test_a_condition_that_does_not_fit_the_columns_is_one_line(where, reason):
    rows = rows_of(["a"], language=["en"], score=[0.5])
    with pytest.raises(ConfigError) as caught:
        Selector(Selection(where)).fates(rows, 0)
    assert str(caught.value).startswith(f"--where {where!r} does not fit the columns: {reason}")
    assert "\n" not in str(caught.value)


def test_the_condition_may_look_at_the_text_itself():
    rows = rows_of(["a", "long enough"], text=["a", "long enough"])
    assert Selector(Selection("text.str.len_bytes() > 3")).columns == ["text"]
    assert Selector(Selection("text.str.len_bytes() > 3")).fates(rows, 0).tolist() == [F, D]


def test_polars_reads_the_columns_as_arrow_holds_them():
    dictionary = pa.array(["en", "de"]).dictionary_encode()
    rows = Rows(strings(["a", "b"]), pa.RecordBatch.from_arrays([dictionary], ["language"]))
    assert Selector(Selection('language == "en"')).fates(rows, 0).tolist() == [D, F]
    assert pl.DataFrame(rows.others).height == 2
