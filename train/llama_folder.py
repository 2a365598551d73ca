"""A Llama-shaped folder of Hugging Face, read as data (config.json, safetensors, tokenizer.json): no code is run."""

import json
from pathlib import Path
from typing import Any

from shared.directories import exists
from shared.errors import FormatError
from shared.files import read_bytes
from shared.format import TOKENIZER_NAME
from train.extras import require
from train.imported import Found
from train.llama import argonne_config, argonne_name

HEAD = "lm_head.weight"


def read_llama(folder: Path) -> Found:
    """The model in a folder.

    Raises: FormatError if it is not a Llama, or has what an Argonne model has not.
    """
    require("hf", "safetensors")
    from train.weight_files import read_weights

    path = folder / "config.json"
    config = argonne_config(_read_json(path), str(path))
    weights, fate = {}, {}
    for key, tensor in read_weights(folder).items():
        name = argonne_name(key)
        if key.endswith("rotary_emb.inv_freq"):
            fate[key] = "dropped: it is computed"
        elif key == HEAD and config.tie_word_embeddings:
            fate[key] = "dropped: the head is the embedding"
        elif name is None:
            raise FormatError(f"{folder} has a tensor {key!r}, which is none of a Llama: it cannot be imported")
        else:
            weights[name], fate[key] = tensor, name
    tokenizer = read_bytes(folder / TOKENIZER_NAME) if exists(folder / TOKENIZER_NAME) else None
    return Found(str(folder), config, weights, fate, tokenizer)


def _read_json(path: Path) -> dict[str, Any]:
    if not exists(path):
        raise FormatError(f"{path} not found: name a folder of Hugging Face, or an Argonne checkpoint (.pth, .pt)")
    try:
        found = json.loads(read_bytes(path))
    except ValueError as error:
        raise FormatError(f"{path} is not JSON ({error}): download it again") from None
    if not isinstance(found, dict):
        raise FormatError(f"{path} holds no settings: download it again")
    return found
