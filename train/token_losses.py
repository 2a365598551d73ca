"""What a model of a run makes of the chunks of one of its steps: the loss of every target, document by document.

Legend: B sequences, T positions, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812

from shared.cursor import Chunks
from shared.errors import FormatError
from train.checkpoint_directory import damage, nearest
from train.model import ArgonneModel
from train.provenance import Part
from train.replay import Reading, Replay
from train.run_files import CHECKPOINTS_NAME
from train.sample import load_checkpoint
from train.strategy import evaluating
from train.trace import SeenStep


@dataclass(frozen=True)
class ChunkLosses:
    """The loss of each id of each part of a document in a chunk; None of one that is no target there."""

    parts: list[list[float | None]]


class TokenLosses:
    """The losses of a run's steps by the models that it has saved."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._damage = lru_cache(damage)  # a whole checkpoint is read for it
        self._load = lru_cache(maxsize=1)(lambda path: load_checkpoint(replay.run, path)[0])

    def checkpoint(self, step: int) -> Path:
        """The valid checkpoint that is nearest to the weights that `step` began with.

        Raises: FormatError if the run has none.
        """
        path, problems = nearest(self._replay.run / CHECKPOINTS_NAME, step - 1, self._damage)
        if path is None:
            told = "; ".join(problems.values()) or f"{self._replay.run} has no checkpoint"
            raise FormatError(
                f"{told}: losses are those of a model that was saved, wait for a save or leave out --losses"
            )
        return path

    def of(self, seen: SeenStep) -> tuple[Path, list[ChunkLosses]]:
        """The nearest checkpoint to a step, and the losses of its chunks by that, in fp32, one chunk at a time."""
        stretch = self._replay.history.of(seen.step)
        assert stretch is not None, "the step was found in it"
        path, reading = self.checkpoint(seen.step), self._replay.reading(stretch)
        of_chunk = partial(self._of_chunk, self._load(path), reading)
        return path, [of_chunk(chunk.shard, chunk.offset, chunk.documents) for chunk in seen.chunks]

    def _of_chunk(
        self, model: ArgonneModel, reading: Reading, shard: int, offset: int, parts: Sequence[Part]
    ) -> ChunkLosses:
        places: list[Chunks] = [torch.tensor([number]).numpy() for number in (shard, offset)]
        sequences, data = reading.view.read(*places), reading.data
        ids_BT = torch.from_numpy(sequences.ids.astype("int64"))
        starts_BT = None if sequences.starts_BT is None else torch.from_numpy(sequences.starts_BT)
        model.document_mask, model.restart_positions = data.document_mask, data.restart_positions
        with evaluating(model):
            logits_BTV = model(ids_BT[:, : data.sequence_length], starts_BT=starts_BT).float()
        losses = F.cross_entropy(logits_BTV[0], ids_BT[0, -data.sequence_length :], reduction="none").tolist()
        return ChunkLosses([list(_of_part(part, losses, data.packing is not None)) for part in parts])


def _of_part(part: Part, losses: Sequence[float], is_packed: bool) -> Iterator[float | None]:
    """The id at a place is the target of the place before; of a packing's piece the first is no target."""
    for place in range(part.place, part.place + part.stop - part.start):
        is_target = place > part.place if is_packed else place > 0
        yield losses[place - 1] if is_target else None
