"""Weights in safetensors files of a bounded size, named and indexed as the tools of Hugging Face find them."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from shared.directories import exists
from shared.errors import FormatError
from shared.files import read_bytes
from shared.storage import write_file

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
MOST_BYTES = 5 * 10**9
"""Of one file."""


def in_files(tensors: Mapping[str, Tensor], most_bytes: int) -> list[list[str]]:
    """Names of the tensors of each file, in their order; a file of more than `most_bytes` has one tensor."""
    files: list[list[str]] = [[]]
    size_bytes = 0
    for name, tensor in tensors.items():
        if files[-1] and size_bytes + tensor.nbytes > most_bytes:
            files.append([])
            size_bytes = 0
        files[-1].append(name)
        size_bytes += tensor.nbytes
    return files


def write_weights(directory: Path, tensors: Mapping[str, Tensor], most_bytes: int = MOST_BYTES) -> dict[str, str]:
    """Write `tensors` into `directory`, durable; the sha256 of each file by its name.

    Raises: StorageError if the disk refuses.
    """
    files = in_files(tensors, most_bytes)
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    names = names if len(files) > 1 else [WEIGHTS_NAME]
    written = {}
    for file, members in zip(names, files, strict=True):
        contents = save({name: tensors[name].contiguous() for name in members}, {"format": "pt"})
        written[file] = write_file(directory / file, [contents])
    if len(files) > 1:
        places = {name: file for file, members in zip(names, files, strict=True) for name in members}
        total = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
        document = json.dumps({"metadata": total, "weight_map": places}, indent=2)
        written[INDEX_NAME] = write_file(directory / INDEX_NAME, [document.encode()])
    return written


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of a folder, by name.

    Raises: FormatError if there are none, or they are not what the index says.
    """
    if exists(directory / INDEX_NAME):
        try:
            places = dict(json.loads(read_bytes(directory / INDEX_NAME))["weight_map"])
        except (ValueError, KeyError, TypeError):
            raise FormatError(f"{directory / INDEX_NAME} is not an index of weights: download it again") from None
    elif exists(directory / WEIGHTS_NAME):
        places = {"": WEIGHTS_NAME}
    else:
        raise FormatError(
            f"{directory} has neither {WEIGHTS_NAME} nor {INDEX_NAME}: name a folder with weights in safetensors "
            "(pickled .bin files are not read)"
        )
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(places.values()):
        if Path(file).name != file:
            raise FormatError(f"{directory / INDEX_NAME} names {file!r}, which is not in that folder: do not trust it")
        if not exists(directory / file):
            raise FormatError(f"{directory / file} is missing: download it again")
        try:
            tensors |= load_file(directory / file)
        except SafetensorError as error:
            raise FormatError(f"{directory / file} is damaged ({error}): download it again") from error
    missing = sorted(places.keys() - tensors.keys() - {""})
    if missing:
        raise FormatError(f"{directory} lacks {missing[0]}, which {INDEX_NAME} names: download it again")
    return tensors
