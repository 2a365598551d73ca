"""How often a run reads each source of its mixture through, and whether that is more than the recipe allows."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from shared.cursor import Cursor
from shared.errors import ConfigError
from shared.mixed_order import MixedOrder, Order
from train.config import RunConfig
from train.data_sources import MANY_PASSES, DataSource


def passes(order: MixedOrder, position: int) -> tuple[float, ...]:
    """How often a run that is at `position` has read through each source.

    >>> from shared.cursor import ReadingOrder
    >>> from shared.mixture import Mixture
    >>> passes(MixedOrder((ReadingOrder((8,)), ReadingOrder((2,))), Mixture((3, 1)), (0, 0)), 16)
    (1.5, 2.0)
    """
    taken = zip(order.taken(position), order.parts, strict=True)
    return tuple(count / part.num_training for count, part in taken)


def passes_at_end(config: RunConfig, order: Order, checkpoints: Path) -> dict[DataSource, float]:
    """How often the run that has those checkpoints will have read through each source when its schedule ends.

    Nothing, if its data is one dataset.
    """
    if not isinstance(order, MixedOrder):
        return {}
    from train.checkpoint_directory import read_manifests  # it needs torch, this module does not

    manifests = read_manifests(checkpoints)
    step, cursor = (manifests[-1]["step"], manifests[-1]["cursor"]) if manifests else (0, None)
    start = order.position(Cursor(**cursor)) if cursor else 0  # an import has read nothing here
    end = start + max(config.total_steps - step, 0) * config.data.global_batch
    return dict(zip(config.data.sources, passes(order, end), strict=True))


def check_passes(at_end: Mapping[DataSource, float]) -> None:
    """Raises: ConfigError if a source is read more often by the end than it may be."""
    for source, count in at_end.items():
        if source.max_passes is not None and count > source.max_passes:
            raise ConfigError(
                f"data.sources: {source.name} would be read {count:.2f} times by the end of the schedule, its "
                f"max_passes is {source.max_passes:g}: lower its weight or training.total_steps, or raise max_passes"
            )


def many_passes(at_end: Mapping[DataSource, float]) -> Iterator[str]:
    """What to say of each source that is read very often, and whose max_passes does not say that this is meant."""
    for source, count in at_end.items():
        if source.max_passes is None and count > MANY_PASSES:
            yield (
                f"source {source.name} is read {count:.2f} times by the end of the schedule: past {MANY_PASSES:g} a "
                "model learns little more of it; lower its weight, or give max_passes if it is meant"
            )
