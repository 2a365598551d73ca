"""A model from elsewhere as a run that has not begun: a checkpoint of today's form, which any strategy continues.

    <out>/checkpoints/step-00000000/   its weights, and where it was if it tells
    <out>/recipe.toml                  its architecture, and how to go on; for `--recipe`
    <out>/tokenizer.json               if it came with one
    <out>/imported.json                sealed: what it was, and what became of each of its tensors

It belongs to no dataset yet: the first start under a dataset settles that.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.config import unstructure
from shared.directories import exists, make_directory, move, remove_tree, temporary_name
from shared.errors import ConfigError, FormatError
from shared.files import read_bytes
from shared.format import TOKENIZER_NAME
from shared.storage import write_file, write_sealed
from train.architecture import ArgonneConfig
from train.building import make_model
from train.checkpoint_save import Saving, save_checkpoint
from train.config import RunConfig
from train.legacy_place import Place
from train.run_files import CHECKPOINTS_NAME, IMPORTED_NAME

RECIPE_NAME = "recipe.toml"
WEIGHED = (
    *("architecture", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_size"),
    *("num_key_value_heads", "intermediate_size", "tie_word_embeddings", "attention_bias", "mlp_bias", "qk_norm"),
)
"""What of an architecture its weights settle."""


@dataclass(frozen=True)
class Found:
    """A model that was read from elsewhere."""

    source: str
    config: ArgonneConfig
    weights: dict[str, Tensor]
    """By the names of today."""
    fate: dict[str, str]
    """What became of each key that was there: the name of today, or why it was dropped."""
    tokenizer: bytes | None = None
    step: int = 0
    tokens: int = 0
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    """State of AdamW, by `<parameter>.<state>`."""
    data_position: Any = None
    """Where an old run was in its data, as it told it."""
    notes: list[str] = field(default_factory=list)
    """What else there is to say of what was made of it."""

    @property
    def tokenizer_sha256(self) -> str | None:
        """Of the tokenizer, if there is one."""
        return None if self.tokenizer is None else hashlib.sha256(self.tokenizer).hexdigest()

    @property
    def num_renamed(self) -> int:
        """Tensors that have another name now."""
        return sum(name in self.weights and name != key for key, name in self.fate.items())

    @property
    def num_dropped(self) -> int:
        """Keys that nothing was made of."""
        return sum(name not in self.weights for name in self.fate.values())


def with_model(found: Found, asked: ArgonneConfig) -> Found:
    """The model with the architecture that was asked for, where its source leaves a choice.

    Raises: ConfigError if it leaves none.
    """
    for name in WEIGHED:
        there, wanted = getattr(found.config, name), getattr(asked, name)
        if there != wanted:
            raise ConfigError(
                f"model.{name} {wanted} is asked for, the weights of {found.source} are for {there}: leave it out"
            )
    return replace(found, config=asked)


def with_tokenizer(found: Found, path: Path) -> Found:
    """The model with the tokenizer.json that it was trained with.

    Raises: FormatError if that is none, or gives ids that the model has no row for.
    """
    from tokenizers import Tokenizer

    if not exists(path):
        raise FormatError(f"{path} not found: name the tokenizer.json that the model was trained with")
    raw = read_bytes(path)
    try:
        num_ids = Tokenizer.from_str(raw.decode()).get_vocab_size()
    except Exception as error:  # tokenizers raises no narrower one
        raise FormatError(f"{path} is not a tokenizer.json: {error}") from None
    if num_ids > found.config.vocab:
        raise FormatError(
            f"{path} gives {num_ids:,} ids, the model has {found.config.vocab:,} rows: it was trained with another one"
        )
    return replace(found, tokenizer=raw)


def write_import(found: Found, out: Path, config: RunConfig, place: Place | None = None) -> Path:
    """Write a model as a run that is to be continued under `config`, at `place`; where its recipe is.

    Raises: ConfigError if there is something; FormatError if the tensors are not those of its architecture.
    """
    if exists(out):
        raise ConfigError(f"{out} is there already: name another directory, or delete it")
    config = replace(config, model=found.config)
    _check_tensors(found)
    _check_tokenizer(found, place)
    temporary = temporary_name(out)
    make_directory(temporary)
    try:
        _save(found, temporary / CHECKPOINTS_NAME, config, place)
        write_file(temporary / RECIPE_NAME, [recipe_toml(unstructure(config)).encode()])
        if found.tokenizer is not None:
            write_file(temporary / TOKENIZER_NAME, [found.tokenizer])
        write_sealed(
            temporary / IMPORTED_NAME,
            {"source": found.source, "step": found.step, "keys": found.fate, "notes": found.notes},
        )
        move(temporary, out)
    except BaseException:
        remove_tree(temporary)
        raise
    return out / RECIPE_NAME


def _check_tensors(found: Found) -> None:
    """Raises: FormatError for the first tensor that the architecture wants otherwise, has not, or lacks."""
    with torch.device("meta"):
        wanted = {name: tuple(p.shape) for name, p in make_model(found.config).named_parameters()}
    there = {name: tuple(tensor.shape) for name, tensor in found.weights.items()}
    for name in sorted(wanted.keys() | there.keys()):
        if wanted.get(name) != there.get(name):
            raise FormatError(
                f"{found.source}: {name} is {there.get(name, 'absent')}, its architecture wants "
                f"{wanted.get(name, 'none of it')}: the weights are not those of its configuration"
            )


def _check_tokenizer(found: Found, place: Place | None) -> None:
    """Raises: ConfigError if the tokenizer that came with the model is not that of the dataset."""
    digest = found.tokenizer_sha256
    if place is not None and digest is not None and place.tokenizer != digest:
        raise ConfigError(
            f"the dataset was made with tokenizer {place.tokenizer[:12]}, the model has {digest[:12]}: make it with "
            "the model's tokenizer.json"
        )


def _save(found: Found, directory: Path, config: RunConfig, place: Place | None) -> None:
    tensors = {f"model.{name}": tensor.float() for name, tensor in found.weights.items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in found.optimizer.items()}
    document = {
        "recipe": unstructure(config),
        "dataset": place.dataset if place else None,
        "packing": None,
        "tokenizer": place.tokenizer if place else found.tokenizer_sha256,
        "cursor": place.cursor._asdict() if place else None,
        "step": found.step,
        "tokens": found.tokens,
        "data_digest": "",
        "skipped": 0,
        "imported": found.source,
        "rng": {"seed": config.training.seed, "step": found.step},
    }
    make_directory(directory)
    save_checkpoint(Saving(directory, 1, found.step, document, tensors, tensors, None))


def recipe_toml(recipe: Mapping[str, Any]) -> str:
    """The recipe as TOML; what is None is left out.

    >>> print(recipe_toml({"a": {"b": 1, "c": None}, "d": "x", "e": {"f": True, "g": [{"h": "y", "i": None}]}}))
    d = "x"
    <BLANKLINE>
    [a]
    b = 1
    <BLANKLINE>
    [e]
    f = true
    g = [{h = "y"}]
    <BLANKLINE>
    """
    tables = {name: value for name, value in recipe.items() if isinstance(value, Mapping)}
    sections = [_entries({name: value for name, value in recipe.items() if name not in tables})]
    sections += [f"[{name}]\n{_entries(table)}" for name, table in tables.items()]
    return "\n\n".join(filter(None, sections)) + "\n"


def _entries(table: Mapping[str, Any]) -> str:
    return "\n".join(_pairs(table))


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_toml(value)}" for name, value in table.items() if value is not None]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return f"{{{', '.join(_pairs(value))}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)  # names of choices and sources: nothing to escape
