"""Whether a run may go on at another sequence length: only with the tokens that it would have read there anyway."""

from math import gcd
from pathlib import Path
from typing import Any

from shared.config import structure
from shared.cursor import Cursor
from shared.errors import ConfigError
from shared.mixed_order import Order
from train.config import DataConfig, RunConfig
from train.datasets import Datasets
from train.mixed_view import view_of
from train.orders import reading_order

LENGTHS = {"data.sequence_length", "data.validation_chunks"}
"""What may differ together when a run is continued, if `why_other_tokens` has nothing against it."""


def why_other_tokens(before: DataConfig, now: DataConfig) -> str | None:
    """Why other tokens of a dataset would be read or held out at the sequence length of `now`; None if the same ones.

    >>> why_other_tokens(DataConfig(1024, shuffle_length=8192), DataConfig(2048, shuffle_length=8192))
    >>> why_other_tokens(DataConfig(1024), DataConfig(2048))
    'without data.shuffle_length the chunks of 1024 are what was shuffled'
    """
    length, num_held_out = before.sequence_length, before.validation_chunks * before.sequence_length
    if now.packing is not None:
        return f"the chunks of a packing are of one length, here {length}"
    if now.shuffle_length is None and now.order == "shuffled":
        return f"without data.shuffle_length the chunks of {length} are what was shuffled"
    if now.shuffle_length is None and num_held_out:
        return f"without data.shuffle_length the last chunks of {length} are what is held out"
    if num_held_out != now.validation_chunks * now.sequence_length:
        chunks, rest = divmod(num_held_out, now.sequence_length)
        wanted = "no number of chunks" if rest else f"data.validation_chunks {chunks}"
        return f"{num_held_out} tokens are held out: {wanted} of {now.sequence_length} would be the same"
    return None


def why_mixed(data: DataConfig) -> str | None:
    """Why a run of several sources keeps its sequence length, whatever their tokens; None if it has no such."""
    return f"the sources take turns by sequences, here of {data.sequence_length}" if data.sources else None


def cursor_of(manifest: dict[str, Any], length: int) -> Cursor | None:
    """Where the checkpoint of that manifest goes on, in chunks of `length`; None if that is in the middle of one."""
    return Cursor(**manifest["cursor"]).at_length(manifest["recipe"]["data"]["sequence_length"], length)


def check_place(run: Path, manifests: list[dict[str, Any]], datasets: Datasets, length: int) -> None:
    """See that the newest of a run's checkpoints, whose manifests these are, is between two chunks of `length`.

    Raises: ConfigError if it is in the middle of one, with what leads out of it.
    """
    manifests = [manifest for manifest in manifests if manifest["cursor"]]  # an import has read nothing here
    fitting = [manifest for manifest in manifests if cursor_of(manifest, length) is not None]
    if fitting[-1:] == manifests[-1:]:
        return
    step, cursor = manifests[-1]["step"], Cursor(**manifests[-1]["cursor"])
    then = structure(manifests[-1]["recipe"], RunConfig, str(run))
    order, before = reading_order(view_of(datasets, then), then), then.data.sequence_length
    num_steps, batch = way_out(order, order.position(cursor), then.data, length)
    other_batch = "" if batch == then.data.global_batch else f" and data.global_batch {batch}"
    steps = " or ".join(str(manifest["step"]) for manifest in fitting)
    raise ConfigError(
        f"{run} is at step {step}, {cursor.offset * before % length} tokens into a chunk of {length}: train on to step "
        f"{step + num_steps} with data.sequence_length {before}{other_batch} (--stop-step {step + num_steps}) first"
        f"{f', or continue a copy whose newest checkpoint is of step {steps}' if steps else ''}"
    )


def way_out(order: Order, position: int, data: DataConfig, length: int) -> tuple[int, int]:
    """How many steps of which global batch, at most that of `data`, lead from `position` to the end of a chunk of
    `length`, while the chunks of `order` are those of `data`.

    >>> from shared.cursor import ReadingOrder
    >>> data = DataConfig(1024, global_batch=6, order="natural")
    >>> [way_out(ReadingOrder((100,)), position, data, 4096) for position in (2, 3)]
    [(1, 6), (1, 5)]
    """
    ratio = length // gcd(length, data.sequence_length)
    for batch in range(data.global_batch, 0, -1):
        if data.validation_chunks % batch == 0:
            ends = order.chunks(range(position, position + ratio * batch + 1))[batch::batch]
            offsets = order.locate(ends)[1].tolist()
            steps = [step for step, offset in enumerate(offsets, 1) if offset * data.sequence_length % length == 0]
            if steps:
                return steps[0], batch
    raise AssertionError("the end of a unit is the end of a chunk")
