"""What takes a while to find out about installed libraries, found out once and kept in the user's cache.

An answer belongs to its question, versions included: another release asks anew, and a damaged answer is not believed.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.directories import make_directory
from shared.errors import FormatError, StorageError
from shared.storage import read_sealed, seal, write_sealed


def remembered(
    name: str, question: dict[str, Any], find: Callable[[], dict[str, Any]], say: Callable[[str], None]
) -> dict[str, Any]:
    """The answer to `question`, as JSON keeps it: what was found out earlier, else what `find` finds now.

    `name` begins the name of the file. `say` is told if the answer cannot be kept.
    """
    path = cache_directory() / f"{name}-{seal(question)[:16]}.json"
    try:
        known = read_sealed(path)
    except (OSError, StorageError, FormatError):
        known = {}
    if question.items() <= known.items():
        return known
    answer = {**question, **find()}
    try:
        make_directory(path.parent)
        write_sealed(path, answer)
    except StorageError as error:
        say(f"{error}; the next run finds it out again")
    return answer


def cache_directory() -> Path:
    """Where this user's programs keep what can be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "argonne"
