import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.codepoints import CodePoints

SETS = (
    [(0x88F, 0x88F)],
    [(0x80, 0x10FFFF)],
    [(0x378, 0x379), (0x88F, 0x88F), (0xA7CE, 0xA7CF), (0x10940, 0x10959)],
    [],
)


@pytest.mark.parametrize("ranges", SETS)
@given(
    texts=st.lists(st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("a\u0378\u088e\u088f\U00010940")))),
    cut=st.integers(0, 3),
)
def test_texts_with_a_code_point_are_found_as_python_finds_them(ranges, texts, cut):
    found = CodePoints(ranges).texts_with(pa.array(texts, pa.large_string()).slice(cut))
    wanted = [
        number
        for number, text in enumerate(texts[cut:])
        if any(first <= ord(char) <= last for char in text for first, last in ranges)
    ]
    assert found.tolist() == wanted


@given(st.sets(st.integers(0x80, 0x10FFFF)))
def test_ranges_hold_exactly_the_code_points_given(codepoints):
    made = CodePoints.of(codepoints)
    assert len(made) == len(codepoints)
    assert {code for first, last in made.ranges for code in range(first, last + 1)} == codepoints
