import json
import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess import jsonblock
from preprocess.jsonblock import are_null, count_rows, read_block
from preprocess.jsonline import LineError

KINDS = {"s": "string", "n": "number", "b": "boolean"}
TYPES = [pa.large_string(), pa.float64(), pa.bool_()]


def expected(block):
    """The rows as Python's own json gives them, line by line, or the number of the first line at fault."""
    rows = []
    for number, line in enumerate(block.split(b"\n")):
        if not line.strip(b" \t\r\n"):
            continue
        try:
            row = json.loads(line.decode(), parse_int=lambda digits: int(digits) if len(digits) < 4300 else 10**400)
            values = [row.get(name) for name in ("text", *KINDS)]
            fits = all(
                value is None or type(value) in kinds
                for value, kinds in zip(values, [[str], [str], [int, float], [bool]], strict=True)
            )
            number_is_exact = not isinstance(values[2], int) or int(float(values[2])) == values[2]
            [value.encode() for value in values if isinstance(value, str)]
        except (ValueError, AttributeError, RecursionError, OverflowError):
            return number
        if not (fits and number_is_exact):
            return number
        rows.append(tuple(values))
    return rows


def found(block, read):
    try:
        texts, others = read(block, "text", KINDS)
    except LineError as error:
        return error.number
    assert [column.type for column in (texts, *others.columns)] == [pa.large_string(), *TYPES]
    return [*zip(texts.to_pylist(), *(column.to_pylist() for column in others.columns), strict=True)]


def same(one, other):
    """Whether both are the same rows, not-a-number being itself."""
    if isinstance(one, int) or isinstance(other, int):
        return one == other
    pairs = [pair for rows in zip(one, other, strict=True) for pair in zip(*rows, strict=True)]
    return all(a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)) for a, b in pairs)


ODD = [
    rb'{"text":"a"}',
    rb'{"text":"a","s":"b","n":1,"b":true}',
    rb'  {  "text" : "a" }  ',
    rb'{"text":null,"s":null}',
    rb"{}",
    rb'{"text":"2020-01-01","s":"2020-01-01T00:00:00Z"}',  # a date is text
    rb'{"text":"12","s":"1e5"}',
    rb'{"text":"a","text":"b"}',  # the last counts
    rb'{"text":"a","text":null}',
    rb'{"x":1,"x":2,"text":"a"}',
    rb'{"te\u0078t":"a"}',
    rb'{"text":"\u0000 \" \\ \/ \b\f\n\r\t \ud83d\ude00 \u00e9"}',
    '{"text":"\u2028\x7f\u0085\ufeff\U0001f600"}'.encode(),
    rb'{"x":"\ud800","text":"a"}',  # half a character in a column that nobody asked for
    rb'{"x":[{"text":"no"}],"text":"a"}',
    rb'{"n":-0.5e-3}',
    rb'{"n":9007199254740992}',
    rb'{"n":NaN,"x":-Infinity}',
    rb'{"n":1e400}',
    rb'{"x":' + b"9" * 5000 + rb',"text":"a"}',
    rb'{"x":' + b"[" * 300 + b"]" * 300 + rb',"text":"a"}',
    b'{"text":"a"\r}\r',
    b"\r",
    b" \t ",
    b'{"":1,"a.b":2,"text":"a"}',
]
WRONG = {
    rb'{"text":1}': "has 'text', which is a number, not a string",
    rb'{"text":true}': "has 'text', which is a boolean, not a string",
    rb'{"text":["a"]}': "has 'text', which is a list, not a string",
    rb'{"text":{"a":"b"}}': "has 'text', which is an object, not a string",
    rb'{"n":"1"}': "has 'n', which is a string, not a number as where it is first in the file",
    rb'{"s":1}': "has 's', which is a number, not a string as where it is first in the file",
    rb'{"b":0}': "has 'b', which is a number, not a boolean as where it is first in the file",
    rb'{"n":9007199254740993}': "has 'n', which is an integer that float64 does not hold exactly",
    rb'{"n":-1' + b"0" * 400 + b"}": "has 'n', which is an integer that float64 does not hold exactly",
    rb'{"n":' + b"9" * 5000 + b"}": "has 'n', which is an integer that float64 does not hold exactly",
    rb'{"text":"a\ud800"}': r"has half a character (\ud800) in 'text'",
    rb'{"text":"\udc00"}': r"has half a character (\udc00) in 'text'",
    rb'{"s":"\ud83d\ud83d"}': r"has half a character (\ud83d) in 's'",
    b'{"text":"\xff"}': "is not valid UTF-8 (byte 0xff at byte 10 of the line)",
    b'{"x":"\xed\xa0\x80","text":"a"}': "is not valid UTF-8 (byte 0xed at byte 7 of the line)",
    b'{"text":"a\x00"}': "is not valid JSON (invalid control character at character 11)",
    b'{"text":"a\tb"}': "is not valid JSON (invalid control character at character 11)",
    b"null": "is null, not an object",
    b'"text"': "is a string, not an object",
    b"[1]": "is a list, not an object",
    b"{'text': 'a'}": "is not valid JSON (expecting property name enclosed in double quotes at character 2)",
    b'{"text":"a"}{"text":"b"}': "is not valid JSON (extra data at character 13)",
    b'{"text":"a"} null {"text":"b"}': "is not valid JSON (extra data at character 14)",
    b'{"text":"a"},': "is not valid JSON (extra data at character 13)",
    b'{"text":"a': "is not valid JSON (unterminated string starting at character 9)",
    b'{"text":': "is not valid JSON (expecting value at character 9)",
    b'{"x":01}': "is not valid JSON (expecting ',' delimiter at character 7)",
    b'{"text":"a"} // no': "is not valid JSON (extra data at character 14)",
    b'\xef\xbb\xbf{"text":"a"}': "is not valid JSON (expecting value at character 1)",
    b"\xc2\xa0": "is not valid JSON (expecting value at character 1)",
    b"\x00\x00": "is not valid JSON (expecting value at character 1)",
    b'{"x":' + b"[" * 100_000: "is nested too deeply",
}


@pytest.mark.parametrize("line", ODD)
def test_an_odd_line_is_what_pythons_json_makes_of_it(line):
    block = b'{"text":"before"}\n' + line + b'\n{"text":"behind"}'
    assert same(found(block, read_block), expected(block))
    assert same(found(block, jsonblock._read_with_python), expected(block))
    assert not isinstance(expected(block), int)
    assert count_rows(block) == len(expected(block))


@pytest.mark.parametrize("line", WRONG)
def test_a_line_that_cannot_be_read_is_named_with_the_reason(line):
    for before in (b'{"text":"before"}\n\n', b"\n\n"):
        block = before + line + b'\n{"text":"behind"}'
        with pytest.raises(LineError) as caught:
            read_block(block, "text", KINDS)
        assert (caught.value.reason, caught.value.number) == (WRONG[line], 2)
        assert expected(block) == 2


@pytest.mark.parametrize(
    "block",
    [
        b'{"text":\n"a"}\n',  # an object on two lines
        b'{"text":"a"}{"text":\n"b"}\n',  # two objects on two lines, but not one on each
        b'{"text":"a"\n}\n{"text":"b"}{"text":"c"}',
        b'{"x":[{}\n{}]}',
        b'{"text":"}\n{"}',
        b'{"text":"a\nb"}',
        b'null\n{"text":"a"}',
        b'{"text":"a",}',
    ],
)
def test_an_object_that_is_not_a_line_is_refused(block):
    with pytest.raises(LineError, match=r"not valid JSON|not an object"):
        read_block(block, "text", {})


def test_arrow_reads_what_is_plain_and_python_the_rest():
    plain = b'{"text": "a", "n": 1, "x": [1, {}]}\r\n\n  \n{"n": 0.5}\n'
    assert jsonblock._read_with_arrow(plain, "text", KINDS) is not None
    for odd in (
        b'{"text":"a","text":"b"}',
        b'{"n":9007199254740992}',
        b'{"x":"\\ud800"}',
        b'{"text":"a"}null{}',
        b"null",
    ):
        assert jsonblock._read_with_arrow(plain + odd, "text", KINDS) is None


@pytest.mark.parametrize("block", [b"", b"\n\n", b"  \r\n\t"])
def test_blank_lines_are_no_rows(block):
    assert found(block, read_block) == found(block, jsonblock._read_with_python) == []
    assert count_rows(block) == 0


def test_a_list_or_an_object_is_its_json_text():
    block = '{"text": "a", "x": {"b": [1, "\u00e9"]}}\n{"x": []}\n{"text": "c"}'.encode()
    texts, others = read_block(block, "text", {"x": "nested", "s": "string"})
    assert texts.to_pylist() == ["a", None, "c"]
    assert others.schema == pa.schema([("x", pa.large_string()), ("s", pa.large_string())])
    assert others.to_pydict() == {"x": ['{"b": [1, "\u00e9"]}', "[]", None], "s": [None] * 3}
    with pytest.raises(LineError, match="has 'x', which is a string, not a list or an object as where it is first"):
        read_block(block + b'\n{"x": "a"}', "text", {"x": "nested"})


def test_the_text_may_be_among_the_others():
    texts, others = read_block(b'{"text": "a"}', "text", {"text": "string"})
    assert (texts.to_pylist(), others.to_pydict()) == (["a"], {"text": ["a"]})


def test_columns_without_a_value_are_known():
    assert are_null(b'{"a": null}\n{}', ["a", "b"])
    assert not are_null(b'{"a": null}\n{"b": 0}', ["a", "b"])
    assert not are_null(b'{"a": ', ["a"])


def test_a_text_of_20_mb_comes_back_whole():
    text = 'some "words"\n\u00e9' * 1_500_000
    texts, _ = read_block(json.dumps({"text": text}).encode() + b'\n{"text": "b"}', "text", {})
    assert texts.to_pylist() == [text, "b"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["text", "s", "n", "b", "x"])
FITTING = st.fixed_dictionaries(
    {},
    optional={
        "text": st.none() | st.text(max_size=20),
        "s": st.none() | st.text(max_size=5),
        "n": st.none() | st.floats() | st.integers(-(2**53), 2**53),
        "b": st.none() | st.booleans(),
        "x": VALUES,
    },
)


@st.composite
def blocks(draw):
    """Lines of JSON, some with values of any kind, some with a byte changed."""
    rows = draw(st.lists(FITTING | FITTING | st.dictionaries(NAMES, VALUES, max_size=4) | VALUES, max_size=5))
    ends = st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n"])
    lines = [json.dumps(row, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass") for row in rows]
    block = bytearray(b"".join(line + draw(ends) for line in lines))
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        place = draw(st.integers(0, len(block)))
        block[place : place + draw(st.integers(0, 2))] = draw(
            st.sampled_from(
                [b"", b'"', b"{", b"}", b"\n", b"}\n{", b"\\", b"\\ud800", b",", b"\xff", b"\x00", b"1", b"null"]
            )
        )
    return bytes(block)


@given(block=blocks())
@settings(max_examples=600, deadline=None)
def test_any_lines_are_what_pythons_json_makes_of_them(block):
    wanted = expected(block)
    assert same(found(block, read_block), wanted)
    assert same(found(block, jsonblock._read_with_python), wanted)
    assert isinstance(wanted, int) or count_rows(block) == len(wanted)
