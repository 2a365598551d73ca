"""Bits that flip and files that are cut short, one at a time, and whether whoever looks says so by name."""

import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import outcome_of
from tests.kills import Result

REMEDY = re.compile(
    r"delete .* and run|run `.*` again|restore|rebuil[dt]|put its copy back|tokenize again|name another"
)
Look = Callable[[], None]


def damage_files(name: str, directory: Path, look: Look, tries: int, harm: Callable, seed: int = 0) -> Result:
    """Every time that `look`, which reads what is in `directory`, did not name a file that was harmed, and a remedy.

    All files are harmed equally often, however large they are.
    """
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and not path.name.startswith(".lock")]
    drawn, result = random.Random(seed), Result(name, tries, notes=f"{len(files)} files, named with a remedy")
    assert seen_by(look)[0] == 0
    for number in range(tries):
        path = files[number % len(files)]
        with harm(path, drawn) as told:
            code, said = seen_by(look)
        if code != 2 or path.name not in said or not REMEDY.search(said):
            result.problems.append(f"{path}: {told}: exit code {code}: {said[-1000:] or 'nothing was said'}")
    return result


@contextmanager
def flipped(path: Path, drawn: random.Random) -> Iterator[str]:
    """One bit of a file is another meanwhile."""
    whole = path.read_bytes()
    place, bit = drawn.randrange(len(whole)), drawn.randrange(8)
    harmed = bytearray(whole)
    harmed[place] ^= 1 << bit
    path.write_bytes(harmed)
    yield f"bit {bit} of byte {place} flipped"
    path.write_bytes(whole)


@contextmanager
def cut(path: Path, drawn: random.Random) -> Iterator[str]:
    """The end of a file is missing meanwhile."""
    whole = path.read_bytes()
    size = drawn.choice([0, len(whole) - 1, drawn.randrange(len(whole))])
    path.write_bytes(whole[:size])
    yield f"cut from {len(whole)} to {size} bytes"
    path.write_bytes(whole)


def seen_by(look: Look) -> tuple[int, str]:
    """Exit code of a fork that looks, and what it said: a signal is a negative one, and a mistake of ours is 1."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        _look(look, write)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said


def _look(look: Look, pipe: int) -> None:
    """The fork's life; it does not return."""
    code, said = outcome_of(look)
    with open(pipe, "wb") as file:
        file.write(said.encode())
    os._exit(code)
