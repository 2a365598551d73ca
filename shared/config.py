"""Plain data (from TOML or JSON) into frozen dataclasses: strict types, and an unknown key is an error."""

import difflib
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import cattrs
from cattrs.cols import homogenous_tuple_structure_factory, list_structure_factory
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn

from shared.errors import ConfigError

T = TypeVar("T")


def _exactly(kind: type) -> Any:
    def check(value: Any, _: type) -> Any:
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is kind:
            return value
        raise TypeError(f"{value!r} is not {_NAMES[kind]}")

    return check


def _from_table(kind: type) -> Any:
    return _only((dict,), "a table", make_dict_structure_fn(kind, _converter, _cattrs_forbid_extra_keys=True))


def _from_list(kind: type) -> Any:
    """Without this, cattrs takes a string for the list of its letters."""
    make = homogenous_tuple_structure_factory if get_origin(kind) is tuple else list_structure_factory
    return _only((list, tuple), "a list", make(kind, _converter))


def _is_list(kind: Any) -> bool:
    return get_origin(kind) in (list, Sequence) or (get_origin(kind) is tuple and Ellipsis in get_args(kind))


def _only(plain: tuple[type, ...], name: str, hook: Callable[[Any, Any], Any]) -> Any:
    def check(value: Any, kind: type) -> Any:
        if isinstance(value, plain):
            return hook(value, kind)
        raise TypeError(f"{value!r} is not {name}")

    return check


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
_converter = cattrs.Converter(forbid_extra_keys=True)
for _kind in _NAMES:
    _converter.register_structure_hook(_kind, _exactly(_kind))
_converter.register_structure_hook_factory(is_dataclass, _from_table)
_converter.register_structure_hook_factory(_is_list, _from_list)


def structure(data: Any, kind: type[T], where: str) -> T:
    """`data` as an instance of the dataclass `kind`; `where` names its origin in messages.

    Raises: ConfigError naming the first unknown key with the nearest known one, the first missing key, or the first
    value of a wrong type.
    """
    try:
        return _converter.structure(data, kind)
    except (ClassValidationError, IterableValidationError, TypeError) as error:
        raise ConfigError(f"{where}: {_first_problem(error)}") from None


def unstructure(value: Any) -> Any:
    """The plain data (dicts, lists, numbers, strings) of a dataclass instance."""
    return _converter.unstructure(value)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises: ConfigError if there is no such file or it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} not found: name an existing recipe file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _first_problem(error: BaseException, path: str = "") -> str:
    """One line for the first leaf of cattrs' error tree, with the dotted path to the value."""
    if isinstance(error, ForbiddenExtraKeysError):
        return "; ".join(_unknown_key(path + key, key, error.cl) for key in sorted(error.extra_fields))
    if isinstance(error, (ClassValidationError, IterableValidationError)):
        notes, others = error.group_exceptions()
        if others:  # unknown keys go before a missing one, of which they are often a misspelling
            return _first_problem(others[0], path)
        inner, note = notes[0]
        name = str(getattr(note, "name", getattr(note, "index", "")))
        return _first_problem(inner, f"{path}{name}.")
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, KeyError):
        return f"{path.rstrip('.')} is missing"
    return f"{path.rstrip('.')}: {error}" if path else str(error)


def _unknown_key(path: str, key: str, kind: type) -> str:
    known = [field.name for field in fields(kind)]
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"unknown key {path!r}: did you mean {nearest[0]!r}? (known: {', '.join(known)})"
