import polars as pl
import pytest

from preprocess.where import MAX_DEPTH, Condition, parse_where
from shared.errors import ConfigError

ROWS = pl.DataFrame(
    {
        "language": ["en", None, "de"],
        "score": [1.0, 0.2, 0.9],
        "tags": [["a"], ["b"], []],
        "odd name": [1, 2, 3],
    }
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('language == "en"', [True, None, False]),
        ('"en" == language', [True, None, False]),
        ('language != "en"', [False, None, True]),
        ('language in ["en", "fr"]', [True, None, False]),
        ('language not in ("en",)', [False, None, True]),
        ('language.is_in({"en"})', [True, None, False]),
        ("language.is_null()", [False, True, False]),
        ("0.2 < score <= 0.9", [False, False, True]),
        ("score.is_between(0.5, 1, closed='left')", [False, False, True]),
        ('language.is_between("da", "dz")', [False, None, True]),
        ('language.fill_null("en") == "en"', [True, True, False]),
        ("score >= 1 or score < 0.5", [True, True, False]),
        ('language == "en" and score > 2', [False, False, False]),
        ("not score > 0.5", [False, True, False]),
        ("~(score > 0.5)", [False, True, False]),
        ("(score > 0.5) & (score < 1) | (score == 0.2)", [False, True, True]),
        ("-score < -0.5", [True, False, True]),
        ("score > -1", [True, True, True]),
        ("score + score * 2 - score / 2 > 2", [True, False, True]),
        ('col("odd name") % 2 == 1', [True, False, True]),
        ('pl.col("odd name") // 2 == 1', [False, True, True]),
        ('tags.list.contains("a")', [True, False, False]),
        ("tags.list.len() == 1", [True, True, False]),
        ('language.str.contains("^d")', [False, None, True]),
        ('language.str.to_uppercase().str.starts_with("E")', [True, None, False]),
        ("language.str.len_chars() == 2", [True, None, True]),
        ("  score > 0.5\n", [True, False, True]),
    ],
)
def test_an_expression_means_what_it_says(text, wanted):
    assert ROWS.select(parse_where(text)).to_series().to_list() == wanted


def test_columns_are_named_once_each_in_order():
    condition = Condition('score > 0.5 and (language == "en" or score < col("odd name"))')
    assert condition.columns == ["score", "language", "odd name"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is no expression: invalid syntax"),
        ("score >", "it is no expression: invalid syntax"),
        ("score\0", "it is no expression: source code string cannot contain null bytes"),
        ("1 == 1", "it names no column"),
        ("[1, 2]", "it names no column"),
        ("score == None", "None is no value to compare with, ask with .is_null() or .is_not_null()"),
        ('language == b"en"', "b'en' is no value to compare with, write a text or a number"),
        ("score is 1", "`is` compares no values, write == or .is_null()"),
        ('language in "en"', "in wants a list, as in [1, 2]"),
        ('language.is_in("en")', ".is_in wants a list, as in [1, 2]"),
        ("score in [score]", "a list may hold only texts and numbers"),
        ("score.mean() > 1", ".mean is not known, did you mean .is_nan? (known here: abs, ceil, fill_null, "),
        ('language.str.containz("e")', ".containz is not known, did you mean .contains? (known here: contains, "),
        ("score.is_between(1)", "score.is_between(1): Expr.is_between() missing 1 required positional argument"),
        ("score.__class__", "'score.__class__' has no meaning for a row"),
        ("score.__class__()", ".__class__ is not known, did you mean ."),
        ("(lambda: score)()", "lambda: score cannot be called"),
        ('__import__("os")', "__import__ cannot be called"),
        ("score if score else 2", "'score if score else 2' has no meaning for a row"),
        ("score ** 2 > 1", "the operator Pow is not known"),
        ("+score > 1", "the operator UAdd is not known"),
        ('col("^sc.*$") > 1', "'^sc.*$' is a pattern, the name of one column is wanted"),
        ('col("*") > 1', "'*' is a pattern, the name of one column is wanted"),
        ("col(score) > 1", "col wants the name of one column in quotes"),
        ("-" * (MAX_DEPTH + 1) + "score > 1", f"it is nested more than {MAX_DEPTH} deep"),
    ],
)
def test_what_is_not_understood_is_told_in_one_line(text, reason):
    with pytest.raises(ConfigError) as caught:
        parse_where(text)
    line = str(caught.value)
    assert f" is not understood: {reason}" in line
    assert line.endswith('; a condition on the columns is wanted, for example language == "en"')
    assert "\n" not in line
