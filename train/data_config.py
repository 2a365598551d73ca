"""What of a dataset a run reads, in which chunks and order: the section [data] of a recipe."""

from dataclasses import dataclass
from typing import Literal

from shared.errors import ConfigError
from train.architecture import at_least, nearest_multiple
from train.data_sources import DataSource, check_sources


@dataclass(frozen=True)
class DataConfig:
    """Which chunks an optimizer step reads."""

    sequence_length: int = 2048
    """Targets of one sequence; any length, whatever the dataset was written with."""
    global_batch: int = 32
    """Sequences of one optimizer step, over all ranks."""
    order: Literal["natural", "shuffled"] = "shuffled"
    shuffle_length: int | None = None
    """Tokens that are shuffled, or held out for validation, as one: a multiple of the sequence length, which may then
    become another one that divides it when the run is continued. None: chunks are, and the length is fixed."""
    packing: Literal["best-fit", "whole"] | None = None
    """Chunks made by `make pack` for this sequence_length. None: those of the plain stream."""
    document_mask: bool = False
    """Tokens attend only within their document."""
    restart_positions: bool = False
    """Rotary positions start at 0 in each document."""
    validation_chunks: int = 0
    """How many chunks the validation loss is over, a multiple of global_batch."""
    validation: Literal["reserved", "split"] = "reserved"
    """reserved: the last chunks of the dataset, never trained on. split: the last of TOKENS/validation. Of several
    sources each holds out so many."""
    sources: tuple[DataSource, ...] = ()
    """Datasets in TOKENS that are read by turns, as their weights say. None listed: TOKENS is the dataset."""

    def __post_init__(self) -> None:
        at_least("data.sequence_length", self.sequence_length, 1)
        at_least("data.global_batch", self.global_batch, 1)
        at_least("data.validation_chunks", self.validation_chunks, 0)
        if self.sources:
            check_sources(self.sources)
        if self.shuffle_length is not None:
            at_least("data.shuffle_length", self.shuffle_length, 1)
            self._check_shuffle_length(self.shuffle_length)
        if self.validation_chunks % self.global_batch:
            raise ConfigError(
                f"data.validation_chunks {self.validation_chunks} is not a multiple of data.global_batch "
                f"{self.global_batch}: {nearest_multiple(self.validation_chunks, self.global_batch)} is"
            )

    def _check_shuffle_length(self, length: int) -> None:
        if length % self.sequence_length:
            raise ConfigError(
                f"data.shuffle_length {length} is not a multiple of data.sequence_length {self.sequence_length}: "
                f"{nearest_multiple(length, self.sequence_length)} is"
            )
        if self.packing is not None:
            raise ConfigError(
                f"data.shuffle_length {length} is given with data.packing {self.packing}, whose chunks are of one "
                "length: set one of them to None (in a recipe, leave it out)"
            )

    @property
    def in_units(self) -> str:
        """What is held out as one, if it is not a chunk, as the end of a message."""
        return "" if self.shuffle_length is None else f" in whole units of data.shuffle_length {self.shuffle_length}"

    @property
    def tells_documents(self) -> bool:
        """Whether batches say where documents begin."""
        return self.document_mask or self.restart_positions
