"""Parts of a build on several machines that share a directory: who holds what, what is left over, what is missing."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from preprocess.config import Part
from shared.directories import listing, remove_file, written_name
from shared.files import open_empty, size_of
from shared.format import INDEX_NAME, TOKENIZER_NAME, VALIDATION_NAME
from shared.locks import LOCK_NAME, THEFT_NAME, exclusive, together
from shared.packing import PACKINGS_NAME

SHARD_NAME = re.compile(r"(\d{5,})(\.documents|\.digests)?\.(npy|json)")
PART_LOCK = re.compile(rf"{re.escape(LOCK_NAME)}-(\d+)-of-(\d+)")
MAX_SHOWN = 20
LIST_NAMES = ("duplicates.npy", "duplicates.json")


def is_ours(name: str) -> bool:
    """Whether a file or directory of this name may be a dataset's, finished or not."""
    name = written_name(name) or name
    named = (INDEX_NAME, TOKENIZER_NAME, LOCK_NAME, THEFT_NAME, PACKINGS_NAME, VALIDATION_NAME, *LIST_NAMES)
    return bool(SHARD_NAME.fullmatch(name) or PART_LOCK.fullmatch(name) or name in named)


@contextmanager
def hold(directory: Path, part: Part | None, steal: bool = False) -> Iterator[None]:
    """Hold `directory` for a whole build, or for one part beside the others; nothing half-written stays behind.

    Raises: UserError if it is in use by another build, or this part by another, and not to be stolen from that.
    """
    if part is None:
        with exclusive(directory, "build", steal=steal), _tidied(directory, part):
            yield
    else:
        lock_name = f"{LOCK_NAME}-{part.number}-of-{part.count}"
        alone = exclusive(directory, f"build of part {part}", lock_name, steal)
        with together(directory, "build", steal=steal), alone, _tidied(directory, part):
            yield


@contextmanager
def _tidied(directory: Path, part: Part | None) -> Iterator[None]:
    _remove_leftovers(directory, part)
    try:
        yield
    finally:
        _remove_leftovers(directory, part)


def _remove_leftovers(directory: Path, part: Part | None) -> None:
    """Delete what killed processes were writing; of a part, only its own shards: the others may be alive."""
    for path in listing(directory):
        if part is None and PART_LOCK.fullmatch(path.name) and size_of(path):
            open_empty(path).close()  # no process that held a part before this build has it any more
        name = written_name(path.name)
        if name is None or not is_ours(name):
            continue
        shard = SHARD_NAME.fullmatch(name)
        if part is None or (shard and part.owns(int(shard[1]))):
            remove_file(path)


def describe_missing(directory: Path, missing: Sequence[int]) -> str:
    """The numbers of the missing shards, and the parts that write them if the parts of `directory` are known.

    >>> describe_missing(Path("/nowhere"), [3, 7])
    'shards 3, 7'
    """
    more = f" and {len(missing) - MAX_SHOWN:,} more" if len(missing) > MAX_SHOWN else ""
    shards = f"shard{'s' * (len(missing) > 1)} {', '.join(map(str, missing[:MAX_SHOWN]))}{more}"
    counts = {int(found[2]) for path in listing(directory) if (found := PART_LOCK.fullmatch(path.name))}
    if len(counts) != 1:
        return shards
    (count,) = counts
    numbers = sorted({shard % count + 1 for shard in missing})
    parts = ", ".join(str(Part(number, count)) for number in numbers[:MAX_SHOWN])
    more = f" and {len(numbers) - MAX_SHOWN:,} more" if len(numbers) > MAX_SHOWN else ""
    return f"{shards} (part{'s' * (len(numbers) > 1)} {parts}{more})"
