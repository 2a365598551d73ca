"""The command `slice`, which each task of a job array calls when it begins and when it ends: how a build goes."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from shared.directories import exists, is_directory, listing
from shared.format import INDEX_NAME, VALIDATION_NAME
from shared.slices import GO_ON, Chain, Verdict

UNIT = "shard"
RECEIPT_NAME = re.compile(r"\d+\.json")


@dataclass(frozen=True)
class SliceOptions:
    """Write down how a job array of a chain goes; 0 = go on, 3 = the chain has ended. Job scripts call it."""

    what: Annotated[Literal["begin", "end"], tyro.conf.Positional]
    chain: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHAIN")]
    """Directory of the chain."""
    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")]
    """Directory of the dataset."""
    job: str
    """The array's name."""
    task: int
    """Of the array; the first writes down what became of the arrays before."""
    code: int = 0
    """How the task's command ended."""


def slice_of_build(options: SliceOptions) -> int:
    """GO_ON, or ENDED if there is nothing left to do or no use in going on."""
    chain, now_s, count = Chain(options.chain, UNIT), time.time(), num_written(options.tokens)
    if options.what == "begin":
        return chain.begin(options.job, count, now_s) if options.task == 1 else GO_ON
    if options.code == 0 and is_finished(options.tokens):
        return chain.mark(Verdict("FINISHED", "the dataset is there"), count, options.job, now_s)
    if options.code == 2:
        verdict = Verdict("STOPPED", f"needs a person: task {options.task} says what in the log")
        return chain.mark(verdict, count, options.job, now_s)
    print(f"--- task {options.task} ended with exit code {options.code}, {count} shards are written", flush=True)
    return GO_ON


def num_written(tokens: Path) -> int:
    """Shards of a dataset, and of the one in it that is kept for validation, that are there."""
    both = [*listing(tokens), *listing(tokens / VALIDATION_NAME)]
    return sum(RECEIPT_NAME.fullmatch(path.name) is not None for path in both)


def is_finished(tokens: Path) -> bool:
    """Whether it has its index, and so has the one in it, if one is made."""
    inner = tokens / VALIDATION_NAME
    return exists(tokens / INDEX_NAME) and (not is_directory(inner) or exists(inner / INDEX_NAME))
