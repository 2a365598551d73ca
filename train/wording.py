"""Times, and the values of a recipe, in words."""

from datetime import UTC, datetime
from typing import Any


def value(plain: Any) -> str:
    """A value of a recipe, as TOML has it."""
    if plain is None:
        return "not set"
    if isinstance(plain, bool):
        return str(plain).lower()
    return f'"{plain}"' if isinstance(plain, str) else str(plain)


def toml(recipe: Any) -> str:
    """A recipe in the words of a recipe file; what is not set is a comment."""
    lines, tables = [], []
    for name, plain in recipe.items():
        if isinstance(plain, dict):
            tables += ["", f"[{name}]", *(_assignment(key, item) for key, item in plain.items())]
        else:
            lines.append(_assignment(name, plain))
    return "\n".join([*lines, *tables]).strip()


def _assignment(name: str, plain: Any) -> str:
    return f"# {name} is not set" if plain is None else f"{name} = {value(plain)}"


def clock(time_s: float) -> str:
    """A moment, in UTC.

    >>> clock(0.0)
    '1970-01-01 00:00:00 UTC'
    """
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float) -> str:
    """A time in its two largest units.

    >>> [duration(seconds) for seconds in (0.42, 12.3, 200, 7300, 180_000, 28_800)]
    ['0.42 s', '12.3 s', '3 min 20 s', '2 h 1 min', '2 d 2 h', '8 h']
    """
    if seconds < 60:
        return f"{seconds:.3g} s"
    for size, unit, smaller, name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            rest = int(seconds % size // smaller)
            return f"{int(seconds // size)} {unit}" + (f" {rest} {name}" if rest else "")
    raise AssertionError(seconds)
