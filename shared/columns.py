"""Many small records of one kind as a table of columns: quick to read, and a record is made when it is looked at."""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from typing import Any, Generic, TypeVar, overload

from shared.errors import ConfigError

T = TypeVar("T")


class Rows(Sequence[T], Generic[T]):
    """The records of a table; equal to any sequence of the same records."""

    def __init__(self, kind: type[T], columns: dict[str, list[Any]]) -> None:
        self._kind, self.columns = kind, columns
        self._values = tuple(columns.values())

    def __len__(self) -> int:
        return len(self._values[0])

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> list[T]: ...

    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        return self._kind(*(values[place] for values in self._values))

    def __iter__(self) -> Iterator[T]:
        return (self._kind(*values) for values in zip(*self._values, strict=True))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Rows):
            return self._kind is other._kind and self.columns == other.columns
        return isinstance(other, Sequence) and list(self) == list(other)

    def __hash__(self) -> int:
        raise TypeError("rows are compared by what they hold, as lists are")


def to_columns(kind: type, records: Sequence[Any]) -> dict[str, list[Any]]:
    """The table of some records.

    >>> from shared.packing import PackingName
    >>> to_columns(PackingName, [PackingName("a", "whole", 8), PackingName("b", "whole", 16)])
    {'tokens': ['a', 'b'], 'method': ['whole', 'whole'], 'length': [8, 16]}
    """
    if isinstance(records, Rows):
        return records.columns
    return {field.name: [getattr(record, field.name) for record in records] for field in fields(kind)}


def from_columns(kind: type[T], table: Any, where: str) -> Rows[T]:
    """The records of a table; `kind` is a dataclass of whole numbers and strings.

    Raises: ConfigError if it is not a table of columns of one length, each of the right type.
    """
    if not isinstance(table, dict) or not all(isinstance(values, list) for values in table.values()):
        raise ConfigError(f"{where} is not a table of columns")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(table.keys() - known.keys()):
        raise ConfigError(f"unknown key '{where}.{unknown[0]}' (known: {', '.join(known)})")
    sizes = {len(values) for values in table.values()}
    if len(sizes) > 1:
        raise ConfigError(f"{where} has columns of {min(sizes):,} to {max(sizes):,} values: as many in each are wanted")
    size, columns = max(sizes, default=0), {}
    for name, field in known.items():
        if name not in table and field.default is MISSING:
            raise ConfigError(f"{where}.{name} is missing")
        columns[name] = table.get(name, [field.default] * size)
        if not set(map(type, columns[name])) <= {field.type}:
            wrong = next(value for value in columns[name] if type(value) is not field.type)
            raise ConfigError(
                f"{where}.{name}: {wrong!r} is not {'a string' if field.type is str else 'a whole number'}"
            )
    return Rows(kind, columns)
