"""Everything that is shown of a dataset, found out once: for a terminal, for programs and for a page alike."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from preprocess.plan import index_settings
from preprocess.survey import Survey, survey
from preprocess.token_texts import TokenTexts
from preprocess.tokenizer import load_tokenizer
from shared.columns import to_columns
from shared.directories import exists
from shared.errors import FormatError, InputError
from shared.format import TOKENIZER_NAME, Index, Selection, Shard, read_index
from shared.packing import Packing, PackingName, packing_names, read_packing

LEFT_OUT = ("num_null", "num_empty", "num_filtered", "num_duplicate", "num_other_split", "num_skipped")
ROWS = ("num_rows", "num_documents", *LEFT_OUT)
COUNTS = (*ROWS, "read_bytes", "text_bytes", "rejected_bytes", "num_tokens", "num_chunks", "num_padding")
NOT_VERIFIED, VERIFIED = "not verified", "as its checksums say"
MOST_FREQUENT = 100


class TokenUse(NamedTuple):
    """An id, its text, how often it was found and which share of all ids counted that is."""

    id: int
    text: str
    uses: int
    share: float


@dataclass(frozen=True)
class Inspection:
    """A dataset: its index as tables, what was counted of it, and the state of each shard.

    `tokenizer` is None where `tokenizer_problem` says why. `problems` are what was found wrong beside the shards;
    `is_verified` says whether everything was read for them.
    """

    directory: Path
    index: Index
    sources: pl.DataFrame
    shards: pl.DataFrame
    packings: list[tuple[PackingName, Packing | str]]
    survey: Survey
    seed: int
    is_verified: bool
    problems: list[str]
    tokenizer: Tokenizer | None
    tokenizer_problem: str | None

    @property
    def totals(self) -> dict[str, int]:
        """Sums over all shards."""
        return {name: int(self.shards[name].sum()) for name in COUNTS}

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text behind a token; 0 if there is none."""
        totals = self.totals
        return totals["text_bytes"] / max(totals["num_tokens"], 1)

    @property
    def readable(self) -> list[int]:
        """The shards that nothing is known to be wrong with."""
        return [shard for shard in range(len(self.index.shards)) if shard not in self.survey.problems]

    @property
    def texts(self) -> TokenTexts:
        """The texts of ids."""
        return TokenTexts(self.tokenizer)

    def settings(self) -> dict[str, str]:
        """What decided which rows are documents, if anything did."""
        if self.index.selection == Selection():
            return {}
        settings = index_settings(self.index)
        where = f"where {settings['where']}" if self.index.selection.where else settings["where"]
        return {"selection": f"{where}; duplicates {settings['duplicates']}; {settings['split']}"}

    def most_frequent(self) -> list[TokenUse]:
        """The ids that were counted most often."""
        counts, texts = self.survey.counts, self.texts
        order = np.argsort(-counts, kind="stable")[:MOST_FREQUENT]
        return [
            TokenUse(number, texts.one(number), int(counts[number]), int(counts[number]) / self.survey.num_ids)
            for number in order.tolist()
            if counts[number]
        ]

    def unused(self) -> list[int]:
        """The ids that were not found in what was counted."""
        return [] if not self.survey.num_ids else np.flatnonzero(self.survey.counts == 0).tolist()


def look(directory: Path, *, seed: int = 0, verify: bool = False) -> Inspection:
    """What the dataset in `directory` is; with `verify`, everything is read against its checksums.

    Raises: FormatError if there is no dataset.
    """
    index = read_index(directory)
    found = survey(directory, index, seed)
    tokenizer, tokenizer_problem = _tokenizer(directory, index)
    states = [found.problems.get(shard, NOT_VERIFIED) for shard in range(len(index.shards))]
    problems: list[str] = []
    if verify:
        from preprocess.verify import find_problems

        states = [VERIFIED] * len(index.shards)
        for problem in find_problems(directory, index):
            if problem.shard is None:
                problems.append(problem.text)
            else:
                known = states[problem.shard]
                states[problem.shard] = problem.text if known == VERIFIED else f"{known}; {problem.text}"
    shards = pl.DataFrame(to_columns(Shard, index.shards), schema=_shard_schema()).with_columns(
        pl.Series("state", states, pl.String)
    )
    return Inspection(
        directory,
        index,
        per_source(index, shards),
        shards,
        list(_packings(directory, index)),
        found,
        seed,
        verify,
        problems,
        tokenizer,
        tokenizer_problem,
    )


def per_source(index: Index, shards: pl.DataFrame) -> pl.DataFrame:
    """One row for each source in order, with its number of shards and the sums over them."""
    sums = shards.group_by("source").agg(pl.len().cast(pl.Int64).alias("num_shards"), pl.col(COUNTS).sum())
    sources = pl.DataFrame({"source": range(len(index.sources))}, schema={"source": pl.Int64})
    return sources.join(sums, on="source", how="left").fill_null(0).sort("source").drop("source")


def spoken(name: str) -> str:
    """The name of a count as people say it.

    >>> spoken("num_other_split")
    'other split'
    """
    return name.removeprefix("num_").replace("_", " ")


def _shard_schema() -> dict[str, Any]:
    kinds: dict[Any, Any] = {int: pl.Int64, str: pl.String}
    return {name: kinds[kind] for name, kind in Shard.__annotations__.items()}


def _tokenizer(directory: Path, index: Index) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer that made the ids, or why there is none."""
    path = directory / TOKENIZER_NAME
    if not exists(path):
        return None, f"{TOKENIZER_NAME} is missing: ids are shown without their text"
    try:
        loaded = load_tokenizer(path, index.tokenizer.end_of_document)
    except InputError as error:
        return None, str(error)
    if loaded.identity.sha256 != index.tokenizer.sha256:
        return None, f"{TOKENIZER_NAME} is not the one that made the dataset: ids are shown without their text"
    return loaded.tokenizer, None


def _packings(directory: Path, index: Index) -> Iterator[tuple[PackingName, Packing | str]]:
    for name in packing_names(directory):
        try:
            yield name, read_packing(name, index)
        except FormatError as error:
            yield name, str(error)
