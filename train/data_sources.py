"""The datasets of a mixture, as the section [data] of a recipe lists them: what it says of each, and what fits."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import ConfigError
from shared.mixture import Mixture, whole_weights

MOST_TURNS = 100_000
"""Positions after which the order of the sources repeats: a table of so many is made."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MANY_PASSES = 4.0
"""Past so many times through a source a model learns little more of it.

Source: Muennighoff et al., Scaling Data-Constrained Language Models, arXiv 2305.16264."""


@dataclass(frozen=True)
class DataSource:
    """One dataset of a mixture."""

    name: str
    """Directory of the dataset in TOKENS, and what the source is called in what a run tells."""
    weight: float
    """Its share of the tokens, beside the weights of the others: of every global batch, to within one sequence."""
    max_passes: float | None = None
    """Times that the run may read it through. None: any number, with a warning past 4."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ConfigError(
                f"data.sources: {self.name!a} is no name of a directory in TOKENS: letters, digits, '.', '_' and '-' "
                "are wanted, a letter or digit first"
            )
        for option in ("weight", "max_passes"):
            value = getattr(self, option)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"data.sources: {self.name} has {option} {value}: a number above 0 is wanted")


def mixture_of(sources: Sequence[DataSource]) -> Mixture:
    """The turns of some sources, by their weights."""
    return Mixture(whole_weights([source.weight for source in sources]))


def check_sources(sources: Sequence[DataSource]) -> None:
    """Raises: ConfigError if two have one name, or their weights have more digits than an order can follow."""
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"data.sources has {name} {names.count(name)} times: list it once, with the sum of them")
    turns = sum(whole_weights([source.weight for source in sources]))
    if turns > MOST_TURNS:
        weights = ", ".join(f"{source.name} {source.weight}" for source in sources)
        raise ConfigError(
            f"data.sources has weights ({weights}) whose order repeats after {turns:,} sequences: give them with "
            f"fewer digits, for at most {MOST_TURNS:,}"
        )
