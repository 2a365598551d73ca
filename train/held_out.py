"""Whether a document is in what a run validates on: the chunks that it reserves, or the dataset that was kept apart."""

from dataclasses import dataclass

import numpy as np

from shared.directories import exists
from shared.errors import FormatError
from shared.format import INDEX_NAME, VALIDATION_NAME
from shared.mixed_order import Order
from shared.rows import InputRows, ShardRow
from train.mixed_view import open_validation
from train.orders import validation_order
from train.provenance import Provenance
from train.replay import Replay
from train.trace import chunks_with
from train.views import View


@dataclass(frozen=True)
class HeldOut:
    """Chunks of a document that no step ever reads."""

    validated: int
    """That the validation loss is over."""
    reserved: int
    """That are behind those which are trained on, but are not validated on either."""
    is_kept_apart: bool
    """Whether the document is of the validation split, a dataset of its own."""


def held_out(replay: Replay, source: str, row: int) -> HeldOut:
    """What of the document in that row of an input file the run validates on, by its options of now.

    Raises: FormatError if there is no such row, or the validation split is not what the run has validated on.
    """
    where = InputRows(replay.index).shard_row(source, row)
    view, order = replay.cut(replay.config.data)
    numbers = order.bounds[where.shard] + np.array(chunks_with(Provenance(replay.datasets), view, where), np.int64)
    validated = _validated(order, numbers) if order.num_held_out else 0
    reserved = int((~order.is_training(numbers)).sum()) - validated
    if not all(exists(part.tokens / VALIDATION_NAME / INDEX_NAME) for part in replay.datasets.parts):
        return HeldOut(validated, reserved, False)
    splits = replay.datasets.validation
    provenance, there = Provenance(splits), InputRows(splits.index).shard_row(source, row)
    is_kept_apart = len(provenance.ids(there.shard, there.row)) > 0
    opened = open_validation(replay.datasets, replay.config)
    if opened is None or not is_kept_apart:
        return HeldOut(validated, reserved, is_kept_apart)
    return HeldOut(_validated_of_split(replay, opened, provenance, there), reserved, True)


def _validated_of_split(replay: Replay, opened: tuple[View, str], provenance: Provenance, where: ShardRow) -> int:
    view, fingerprint = opened
    if fingerprint != (wanted := replay.identity.get("validation", fingerprint)):
        raise FormatError(
            f"{replay.run} validates on dataset {wanted[:12]}, {replay.tokens / VALIDATION_NAME} is {fingerprint[:12]}"
            ": put that one back"
        )
    order = validation_order(view, replay.config)
    return _validated(order, order.bounds[where.shard] + np.array(chunks_with(provenance, view, where), np.int64))


def _validated(order: Order, numbers: np.ndarray) -> int:
    return int(np.isin(numbers, order.held_out(range(order.num_held_out))).sum())
