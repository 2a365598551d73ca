"""The order in which a recipe reads the chunks of a view, or of the views of several datasets."""

import numpy as np

from shared.cursor import ReadingOrder
from shared.mixed_order import MixedOrder, Order
from train.config import RunConfig
from train.data_sources import mixture_of
from train.mixed_view import MixedView
from train.views import View


def reading_order(view: View, config: RunConfig, starts: tuple[int, ...] = ()) -> Order:
    """The order in which `config` reads the chunks of `view`; of a mixture each source from its place in `starts`."""
    seed = config.training.seed if config.data.order == "shuffled" else None
    reserved = config.data.validation_chunks if config.data.validation == "reserved" else 0
    return _by_turns(view, config, reserved, seed, starts)


def validation_order(view: View, config: RunConfig) -> Order:
    """The order of the validation split that `view` is of, at the end of which are the chunks that `config` wants."""
    return _by_turns(view, config, config.data.validation_chunks, None)


def _by_turns(
    view: View, config: RunConfig, num_held_out: int, seed: int | None, starts: tuple[int, ...] = ()
) -> Order:
    """The seed of all sources is one: another mixture of them leaves each in its order."""
    if not isinstance(view, MixedView):
        return _order(view, config, num_held_out, seed)
    parts = tuple(_order(part, config, num_held_out, seed) for part in view.views)
    return MixedOrder(parts, mixture_of(config.data.sources), starts or (0,) * len(parts))


def _order(view: View, config: RunConfig, num_held_out: int, seed: int | None) -> ReadingOrder:
    length, unit_length = config.data.sequence_length, config.data.shuffle_length
    if unit_length is None:
        return ReadingOrder(view.shard_chunks, num_held_out, seed)
    targets = np.array(view.shard_chunks) * length
    last = np.flatnonzero(targets), np.array(view.shard_chunks)[targets > 0] - 1
    targets[last[0]] += view.num_targets(*last) - length
    return ReadingOrder.of_stream(targets, length, unit_length, num_held_out, seed)
