"""Where an old run was in its data, by file and row, as a cursor into a dataset that was made of the same files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shared.cursor import Cursor
from shared.errors import ConfigError
from shared.format import Index, open_documents, read_index
from shared.rows import InputRows
from shared.terminal import safe_text
from train.data_config import DataConfig

NO_PLACE = (
    "data position: left out, the run begins in front; with --tokens TOKENS --data.order natural it goes on where the "
    "old one was"
)


@dataclass(frozen=True)
class Place:
    """The chunk in which the next row begins: nothing is left out, and less than a chunk is read again."""

    dataset: str
    tokenizer: str
    cursor: Cursor
    note: str


def place_of(position: Any, tokens: Path, data: DataConfig) -> Place:
    """Where the run of a checkpoint's `data_position` goes on in the dataset in `tokens`, read as `data` says.

    Raises: ConfigError if that is no place in it.
    """
    if not isinstance(position, Mapping) or not {"current_file_idx", "position_in_file"} <= position.keys():
        raise ConfigError(
            "the checkpoint does not tell where it was in its data: leave --tokens out, to begin in front"
        )
    if data.order != "natural" or data.packing is not None:
        raise ConfigError(
            f"an old run read its files in order, this one is to be {data.order}, data.packing {data.packing}: give "
            "--data.order natural without a packing, or leave --tokens out, to begin in front"
        )
    if data.sources:
        raise ConfigError(
            "an old run read one dataset, this recipe mixes several: leave --tokens out, to begin in front, or leave "
            "data.sources out"
        )
    index = read_index(tokens)
    file, row = position["current_file_idx"], position["position_in_file"]
    _check(index, file, row, position.get("files_processed", []), tokens)
    path = index.sources[file].path
    shard, first = InputRows(index).shard_row(path, row)
    offset = int(open_documents(tokens, index, shard)[first]) // data.sequence_length
    note = f"data position: it goes on at row {row:,} of {safe_text(path)}: shard {shard}, chunk {offset:,}"
    return Place(index.fingerprint, index.tokenizer.sha256, Cursor(0, shard, offset), note)


def _check(index: Index, file: Any, row: Any, processed: Any, tokens: Path) -> None:
    """Raises: ConfigError if the file numbers of the old run are not those of the dataset."""
    if not (isinstance(file, int) and isinstance(row, int) and 0 <= file < len(index.sources) and row >= 0):
        raise ConfigError(
            f"the checkpoint was at row {row!r} of file {file!r}, {tokens} is of {len(index.sources)} files: it is "
            "another input; leave --tokens out, to begin in front"
        )
    for number, old in enumerate(list(processed)[: file + 1]):
        here = PurePosixPath(index.sources[number].path).name
        if PurePosixPath(str(old)).name != here:
            raise ConfigError(
                f"file {number} of the old run was {safe_text(str(old))}, that of {tokens} is {safe_text(here)}: it is "
                "another input; leave --tokens out, to begin in front"
            )
