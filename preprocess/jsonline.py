"""One line of a JSON lines file, read with Python's own json: what a line means is what this says."""

import json
import sys
from typing import Any, Literal

from shared.terminal import safe_text

Kind = Literal["string", "number", "boolean", "nested", "null"]

HUGE = 10**400  # stands for an integer of more digits than Python converts: no float64 is near either
MEND = "mend or remove the line, or move the file away"
KINDS: dict[type, Kind] = {str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
NAMES: dict[Kind, str] = {
    "string": "a string",
    "number": "a number",
    "boolean": "a boolean",
    "nested": "a list or an object",
    "null": "null",
}


class LineError(Exception):
    """Why a line cannot be read; `number` counts it from the first of its block."""

    def __init__(self, reason: str, remedy: str = MEND) -> None:
        super().__init__(reason)
        self.reason, self.remedy, self.number = reason, remedy, 0


def parse_line(line: bytes) -> dict[str, Any]:
    """The object on a line; of a key that is there twice the last value counts.

    Raises: LineError if it is not one JSON object in UTF-8.
    """
    try:
        value = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        found = f"byte {line[error.start]:#04x} at byte {error.start + 1:,} of the line"
        raise LineError(f"is not valid UTF-8 ({found})") from None
    except json.JSONDecodeError as error:
        found = error.msg.lower().removesuffix(" at")
        raise LineError(f"is not valid JSON ({found} at character {error.pos + 1:,})") from None
    except RecursionError:
        raise LineError("is nested too deeply") from None
    if not isinstance(value, dict):
        raise LineError(f"is {describe(value)}, not an object", "a JSON object on each line is wanted")
    return value


def kind_of(value: Any) -> Kind:
    """The kind of a JSON value.

    >>> [kind_of(value) for value in ("a", 1, 0.5, True, [], {}, None)]
    ['string', 'number', 'number', 'boolean', 'nested', 'nested', 'null']
    """
    return KINDS.get(type(value), "nested")


def describe(value: Any) -> str:
    """What a JSON value is, in words.

    >>> describe([]), describe(1.5)
    ('a list', 'a number')
    """
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return NAMES[kind_of(value)]


def stored_text(row: dict[str, Any], column: str) -> str | None:
    """The text of a row: null if it has none.

    Raises: LineError if it is not a string of characters.
    """
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        reason = f"has {safe_text(repr(column))}, which is {describe(value)}, not a string"
        raise LineError(reason, "name the text with --text-column, or mend the line")
    return None if value is None else _characters(value, column)


def stored_value(row: dict[str, Any], name: str, kind: Kind) -> Any:
    """The value of another column of a row as a column of this `kind` holds it; null if it has none.

    A number becomes a float64, and a list or an object its JSON text.

    Raises: LineError if it is of another kind, or an integer that no float64 equals.
    """
    value = row.get(name)
    if value is None:
        return None
    if kind_of(value) != kind:
        first = f"not {NAMES[kind]} as where it is first in the file"
        raise LineError(f"has {safe_text(repr(name))}, which is {describe(value)}, {first}")
    if kind == "nested":
        return _characters(json.dumps(value, ensure_ascii=False), name)
    if kind == "string":
        return _characters(value, name)
    return _float(value, name) if kind == "number" else value


def _float(value: float, name: str) -> float:
    if isinstance(value, int) and not (-sys.float_info.max <= value <= sys.float_info.max and float(value) == value):
        shown = "an integer that float64 does not hold exactly"
        raise LineError(f"has {safe_text(repr(name))}, which is {shown}", "write such numbers as strings")
    return float(value)


def _characters(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"\\u{ord(text[error.start]):04x}"
        raise LineError(f"has half a character ({found}) in {safe_text(repr(name))}") from None
    return text


def _integer(digits: str) -> int:
    try:
        return int(digits)
    except ValueError:  # more digits than Python converts
        return HUGE


_DECODER = json.JSONDecoder(parse_int=_integer)
