from dataclasses import dataclass

import pytest

from shared.columns import Rows, from_columns, to_columns
from shared.errors import ConfigError


@dataclass(frozen=True)
class City:
    name: str
    size: int
    rivers: int = 0


CITIES = [City("a", 1, 2), City("b", 3)]
TABLE = {"name": ["a", "b"], "size": [1, 3], "rivers": [2, 0]}


def test_records_and_their_table_are_inverse():
    rows = from_columns(City, TABLE, "cities")
    assert to_columns(City, CITIES) == TABLE
    assert to_columns(City, rows) == TABLE
    assert list(rows) == CITIES
    assert (len(rows), rows[-1], rows[0:1], rows[:]) == (2, CITIES[1], CITIES[:1], CITIES)


def test_rows_equal_any_sequence_of_the_same_records():
    rows = from_columns(City, TABLE, "cities")
    assert rows == CITIES
    assert rows == CITIES
    assert rows == Rows(City, dict(TABLE))
    assert rows != CITIES[:1]
    assert rows != Rows(City, {**TABLE, "size": [1, 4]})
    with pytest.raises(TypeError, match="rows are compared by what they hold"):
        hash(rows)


def test_a_column_that_there_was_not_has_its_default():
    assert from_columns(City, {"name": ["c"], "size": [5]}, "cities") == [City("c", 5)]


@pytest.mark.parametrize("table", [{}, {"name": [], "size": []}], ids=str)
def test_a_table_may_be_empty_but_not_without_columns(table):
    if table:
        assert list(from_columns(City, table, "cities")) == []
    else:
        with pytest.raises(ConfigError, match=r"^cities.name is missing$"):
            from_columns(City, table, "cities")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "cities is not a table of columns"),
        ({"name": "ab", "size": [1, 2]}, "cities is not a table of columns"),
        ({"name": ["a"]}, "cities.size is missing"),
        ({"name": ["a"], "size": [1, 2]}, "cities has columns of 1 to 2 values: as many in each are wanted"),
        ({"name": ["a"], "size": [True]}, "cities.size: True is not a whole number"),
        ({"name": [3], "size": [1]}, "cities.name: 3 is not a string"),
        ({"name": ["a"], "size": [1], "seas": [1]}, r"unknown key 'cities.seas' \(known: name, size, rivers\)"),
    ],
    ids=str,
)
def test_a_table_of_something_else_is_refused(table, message):
    with pytest.raises(ConfigError, match=f"^{message}$"):
        from_columns(City, table, "cities")
