"""Checkpoint files of Argonne 1.0, 1.5 and 2.0, read as data: torch's `weights_only`, never the whole of pickle."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.directories import exists
from shared.errors import ConfigError, FormatError
from train.architecture import ArgonneConfig
from train.imported import Found
from train.legacy import legacy_config
from train.legacy_names import DROPPED_STAGE, blocks_of_stages, fates, generation_of, parameter_order, unwrapped

WEIGHTS = ("model_state_dict", "model")
OPTIMIZER = ("optimizer_state_dict", "optimizer")
STEP = ("global_step", "step")
TOKENS = ("tokens_processed", "tokens_seen")
"""Where the scripts of the years have put them."""
POSITION = "data_position"
STATES = ("step", "exp_avg", "exp_avg_sq")
TIED = "dropped: the same values as the embedding"


def read_legacy(path: Path, heads: int | None = None) -> Found:
    """The model in an old checkpoint, of so many attention heads, with its optimizer's state if that is whole.

    What its shapes do not show of a 2.0 (longest sequence, rotary theta) is as 2.0 began with.

    Raises: FormatError if it is none, holds more than data or only a part of a model; ConfigError if the number of
    heads is wanted.
    """
    held = _load(path)
    _refuse_a_shard(path, held)
    state = _first(held, WEIGHTS)
    tensors = state if isinstance(state, dict) else held
    if not tensors or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise FormatError(f"{path} has no {' or '.join(WEIGHTS)}: it is not a checkpoint of Argonne 1.x or 2.0")
    try:
        generation = generation_of(tensors)
        fate = fates(list(tensors))
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    _refuse_two_versions(path, tensors, fate)
    weights = {name: _shaped(name, tensors[key]) for key, name in fate.items() if not name.startswith("dropped: ")}
    weights = {name: weights[name] for name in parameter_order(generation, weights)}
    config = _config(generation, weights, heads)
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
        fate = {key: TIED if name == "lm_head.weight" else name for key, name in fate.items()}
    optimizer, note = _optimizer(_first(held, OPTIMIZER), generation, weights)
    step, tokens = (_count(path, held, names) for names in (STEP, TOKENS))
    notes = [f"Argonne {generation}.x: {_told(held)}", note]
    place = held.get(POSITION)
    return Found(
        *(str(path), config, weights, fate),
        step=step,
        tokens=tokens,
        optimizer=optimizer,
        data_position=place,
        notes=notes,
    )


def _load(path: Path) -> dict[str, Any]:
    if not exists(path):
        raise FormatError(f"{path} not found: name a checkpoint file")
    try:
        with warnings.catch_warnings(action="ignore"):  # that another release would read it
            held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:
        # Of what is no checkpoint at all the unpickler raises anything, as a KeyError of its letters. Not torch's own
        # words: they advise to load it as code.
        found = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        why = f"holds more than data ({found[1]})" if found else "is damaged, or no checkpoint"
        raise FormatError(f"{path} {why}: it is not loaded") from error
    if not isinstance(held, dict):
        raise FormatError(f"{path} holds {type(held).__name__}, not a checkpoint")
    return held


def _refuse_a_shard(path: Path, held: Mapping[str, Any]) -> None:
    """Raises: FormatError if what is held is one rank's part of every tensor, or such parts of all ranks."""
    if "tensor_parallel_shards" in held:
        raise FormatError(
            f"{path} holds the shards of a tensor-parallel run, which are not put together here: import the exported "
            "model of that run"
        )
    if held.get("tensor_parallel") and int(held.get("world_size", 1)) > 1:
        raise FormatError(
            f"{path} is the shard of rank {held.get('rank', '?')} of {held['world_size']} of a tensor-parallel run, "
            "which is not a model: import the exported model of that run"
        )


def _refuse_two_versions(path: Path, tensors: Mapping[str, Tensor], fate: Mapping[str, str]) -> None:
    """Raises: FormatError if two keys are of one parameter and their values differ."""
    first: dict[str, str] = {}
    for key, name in fate.items():
        if name.startswith("dropped: "):
            continue
        other = first.setdefault(name, key)
        if other != key and not torch.equal(tensors[other], tensors[key]):
            raise FormatError(
                f"{path}: {other} and {key} are both {name}, and differ: it cannot be told which is right"
            )
    by_name = {unwrapped(key): tensor for key, tensor in tensors.items()}
    staged = [unwrapped(key) for key, name in fate.items() if name == DROPPED_STAGE]
    for key, other in blocks_of_stages(staged).items():
        if other not in by_name or not torch.equal(by_name[key], by_name[other]):
            raise FormatError(f"{path}: {key} is not {other}, which it should share: it cannot be told which is right")


def _shaped(name: str, tensor: Tensor) -> Tensor:
    """As a parameter of today; 1.x had its positions as (1, positions, width)."""
    return tensor[0] if name == "embed_positions.weight" and tensor.ndim == 3 else tensor


def _config(generation: int, weights: Mapping[str, Tensor], heads: int | None) -> ArgonneConfig:
    """What the shapes tell.

    Raises: ConfigError if the number of heads is wanted, or does not fit them.
    """
    vocab, width = weights["embed_tokens.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    if heads is None:
        raise ConfigError(
            "the number of attention heads is not in the checkpoint: give --heads (12 in Argonne 1.0, 16 in 1.5, 24 in "
            "2.0 as they were trained)"
        )
    inner = weights["blocks.0.mlp.up_proj.weight"].shape[0]
    if generation == 1:
        positions = weights["embed_positions.weight"].shape[0]
        sizes = {"block_size": positions, "n_layer": layers, "n_head": heads, "n_embd": width}
        return legacy_config(vocab_size=vocab, intermediate_size=inner, **sizes)
    queries, keys = (weights[f"blocks.0.attn.{name}_proj.weight"].shape[0] for name in "qk")
    head = width // heads  # where it does not divide, as 4096 by 24, the heads are narrower together
    if not head or queries != heads * head or keys % head:
        raise ConfigError(
            f"queries of {queries} and keys of {keys} elements in a model of width {width} do not divide into "
            f"{heads} heads: another --heads is wanted, or it is a part of a model, which cannot be imported"
        )
    output = weights.get("lm_head.weight")
    return ArgonneConfig(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=4096,
        head_size=None if queries == width else head,
        num_key_value_heads=keys // head,
        intermediate_size=inner,
        rope_theta=10000.0,
        tie_word_embeddings=output is not None and torch.equal(output, weights["embed_tokens.weight"]),
        attention_bias="blocks.0.attn.q_proj.bias" in weights,
        mlp_bias="blocks.0.mlp.up_proj.bias" in weights,
    )


def _optimizer(state: Any, generation: int, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The state of AdamW by the names of today, and what there is to say of it; nothing if it is not whole."""
    of_number = state.get("state") if isinstance(state, dict) else None
    if not of_number:
        return {}, "optimizer state: there is none, it begins anew"
    names = parameter_order(generation, weights)
    if sorted(of_number) != list(range(len(names))):
        return {}, f"optimizer state: dropped, it is of {len(of_number)} parameters of {len(names)}; it begins anew"
    taken: dict[str, Tensor] = {}
    for number, name in enumerate(names):
        found = of_number[number]
        if set(STATES) - found.keys() or _shaped(name, found["exp_avg"]).shape != weights[name].shape:
            return {}, f"optimizer state: dropped, that of parameter {number} is not AdamW's of {name}; it begins anew"
        for key in STATES:
            value = torch.as_tensor(found[key], dtype=torch.float32)
            taken[f"{name}.{key}"] = _shaped(name, value)
    return taken, f"optimizer state: that of all {len(names)} parameters"


def _first(held: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((held[name] for name in names if name in held), None)


def _count(path: Path, held: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """Raises: FormatError if what is held is no count."""
    value = _first(held, names)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FormatError(f"{path} says {names[0]} {value!r}: a count is wanted")
    return value


def _told(held: Mapping[str, Any]) -> str:
    """Which of its keys were used and which not."""
    known = (*WEIGHTS, *OPTIMIZER, *STEP, *TOKENS)
    others = [key for key in held if key != POSITION]  # that is for whoever knows the dataset
    used, unused = ([key for key in others if (key in known) is wanted] for wanted in (True, False))
    return f"of the file {', '.join(map(str, used)) or 'nothing'} used, {', '.join(map(str, unused)) or 'nothing'} not"
