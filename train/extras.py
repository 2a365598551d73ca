"""Libraries that only some commands need, and that a plain install lacks."""

import importlib.util

from shared.errors import ConfigError


def require(extra: str, *libraries: str) -> None:
    """Raises: ConfigError if one of `libraries`, which come with `extra`, is not installed."""
    for name in libraries:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"{name} is not installed: `pip install 'argonne[{extra}]'`")
