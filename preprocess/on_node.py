"""A task of a build on one node of a Ray cluster: write one shard where all nodes see it, if the node is fit for that.

It is not if it has other software, another input or another directory than the machine that the build began on: what it
wrote would be other bytes, or in another place.
"""

import hashlib
import io
import platform
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from preprocess.job import Work
from preprocess.plan import Settings, differences
from shared.claims import Claim, adopt
from shared.errors import UserError
from shared.terminal import safe_text

Result = tuple[Any, list[str], tuple[int, int]]
PACKAGES = ("tokenizers", "gigatoken", "fastokens", "pyarrow")  # what makes ids of text


@dataclass(frozen=True)
class Order:
    """What every task is given: the build, what it holds, and the software that a node must have."""

    job: Work[Any]
    claims: Sequence[Claim]
    software: Settings


@dataclass(frozen=True)
class Mistake:
    """What the user can mend, in one line. It is returned and not raised: Ray tells at length of every task's error."""

    line: str


def write_on_node(order: list[Any], number: int) -> Result | Mistake:
    """A task: shard `number` of the order that the one reference in `order` leads to.

    What was done, what was said meanwhile line by line, and the bytes of text and tokens.
    """
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            done, counts = _open(order[0])(number)
    except UserError as error:
        return Mistake(str(error))
    return done, said.getvalue().splitlines(), counts


def software() -> Settings:
    """Hash of our own code and versions of the packages that decide the bytes of a dataset."""
    found: Settings = {"argonne": _code()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@lru_cache(maxsize=1)
def _open(reference: Any) -> Callable[[int], tuple[Any, tuple[int, int]]]:
    """A function that writes shards of an order; what it needs is loaded once in a process."""
    import ray

    order: Order = ray.get(reference)
    job = order.job
    if different := differences(software(), order.software):
        found = safe_text("; ".join(different))
        raise UserError(f"{platform.node()} has other software: {found}: install the same everywhere")
    write = job.open(1, say=print)

    def counted(number: int) -> tuple[Any, tuple[int, int]]:
        counts = [0, 0]

        def report(text_bytes: int, num_tokens: int) -> None:
            counts[0] += text_bytes
            counts[1] += num_tokens

        adopt(order.claims)
        _check_directory(job, order.claims)
        _check_input(job, number)
        return write(number, report), (counts[0], counts[1])

    return counted


def _check_directory(job: Work[Any], claims: Sequence[Claim]) -> None:
    """Raises: UserError if this node has another directory of that name: nothing is to be made where none is shared."""
    if not all(claim.holds for claim in claims):
        raise UserError(
            f"{safe_text(str(job.directory))} on {platform.node()} is not the directory that the build began in: every "
            "node must share it; if they do, another build has begun there since"
        )


def _check_input(job: Work[Any], number: int) -> None:
    """Raises: UserError if this node lacks the input of shard `number`: it must not pass for a damaged file."""
    source = job.plan.sources[job.plan.shards[number].source]
    path = job.root / source.path
    if not path.is_file() or path.stat().st_size != source.size_bytes:
        raise UserError(
            f"{safe_text(str(path))} on {platform.node()} is not there with its {source.size_bytes:,} bytes: every "
            "node must share the input"
        )


def _code() -> str:
    packages = [Path(__file__).parent, Path(__file__).parents[1] / "shared"]
    files = sorted(path for package in packages for path in package.glob("*.py"))
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()
