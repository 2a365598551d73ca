"""The datasets that a run reads: one, or the sources of a mixture, whose shards are then numbered end to end."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.columns import Rows, to_columns
from shared.errors import FormatError
from shared.format import VALIDATION_NAME, Index, open_documents, open_tokens, read_index
from shared.records import Shard, Source
from train.data_config import DataConfig


@dataclass(frozen=True)
class Dataset:
    """One dataset of a run."""

    name: str
    """As the recipe calls it; empty if it is the only one and has no name there."""
    tokens: Path
    index: Index


@dataclass(frozen=True)
class Datasets:
    """All datasets of a run, in the order in which the recipe lists them."""

    parts: tuple[Dataset, ...]

    @cached_property
    def index(self) -> Index:
        """That of the only dataset; of several, all their shards end to end, input files under the sources' names.

        Its fingerprint is a hash over theirs.
        """
        if not self.parts[0].name:
            return self.parts[0].index
        return _joined(self.parts)

    @cached_property
    def first_shards(self) -> npt.NDArray[np.int64]:
        """The first shard of each dataset, then the number of all."""
        return np.cumsum([0, *(len(part.index.shards) for part in self.parts)], dtype=np.int64)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each source, by name; none if there are no sources."""
        return {part.name: part.index.fingerprint for part in self.parts if part.name}

    @property
    def validation(self) -> "Datasets":
        """The validation split of each.

        Raises: FormatError if one has none, or none of the same tokenizer.
        """
        return Datasets(tuple(_validation(part) for part in self.parts))

    def of_shard(self, shard: int) -> tuple[Dataset, int]:
        """The dataset that a shard is of, and its number there."""
        number = int(np.searchsorted(self.first_shards, shard, side="right")) - 1
        return self.parts[number], shard - int(self.first_shards[number])

    def open_documents(self, shard: int) -> npt.NDArray[np.uint64]:
        """See shared/format.py."""
        part, number = self.of_shard(shard)
        return open_documents(part.tokens, part.index, number)

    def open_tokens(self, shard: int) -> npt.NDArray[np.unsignedinteger]:
        """See shared/format.py."""
        part, number = self.of_shard(shard)
        return open_tokens(part.tokens, part.index, number)


def open_datasets(tokens: Path, data: DataConfig) -> Datasets:
    """The datasets in `tokens` that a recipe's [data] names: itself, or a directory in it for each source.

    Raises: FormatError if one is not there, or they are not all of one tokenizer.
    """
    if not data.sources:
        return Datasets((Dataset("", tokens, read_index(tokens)),))
    parts = [Dataset(s.name, tokens / s.name, read_index(tokens / s.name)) for s in data.sources]
    first = parts[0]
    for part in parts[1:]:
        found, wanted = part.index.tokenizer.sha256, first.index.tokenizer.sha256
        if found != wanted:
            raise FormatError(
                f"{part.tokens} has tokenizer {found[:12]}, {first.tokens} has {wanted[:12]}: sources of one mixture "
                f"have one tokenizer, tokenize again with TOKENIZER={first.tokens}/tokenizer.json"
            )
    return Datasets(tuple(parts))


def _validation(part: Dataset) -> Dataset:
    directory = part.tokens / VALIDATION_NAME
    held_out = read_index(directory)
    if held_out.tokenizer.sha256 != part.index.tokenizer.sha256:
        found, wanted = held_out.tokenizer.sha256[:12], part.index.tokenizer.sha256[:12]
        raise FormatError(
            f"{directory} has tokenizer {found}, {part.tokens} has {wanted}: tokenize both again, together"
        )
    return Dataset(part.name, directory, held_out)


def joint_fingerprint(fingerprints: Sequence[str]) -> str:
    """The name of several datasets in this order."""
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()


def _joined(parts: Sequence[Dataset]) -> Index:
    sources: dict[str, list[Any]] = {}
    shards: dict[str, list[Any]] = {}
    num_sources = 0
    for part in parts:
        for name, values in to_columns(Source, part.index.sources).items():
            named = [f"{part.name}/{path}" for path in values] if name == "path" else values
            sources.setdefault(name, []).extend(named)
        for name, values in to_columns(Shard, part.index.shards).items():
            numbered = [number + num_sources for number in values] if name == "source" else values
            shards.setdefault(name, []).extend(numbered)
        num_sources += len(part.index.sources)
    return replace(
        parts[0].index,
        sources=Rows(Source, sources),
        shards=Rows(Shard, shards),
        skipped=[],
        fingerprint=joint_fingerprint([part.index.fingerprint for part in parts]),
    )
