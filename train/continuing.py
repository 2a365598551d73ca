"""Whether a run that is there may go on as it is asked to: what may differ from how it began, and what differs."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.config import structure, unstructure
from shared.directories import exists, listing, written_name
from shared.errors import ConfigError
from shared.locks import LOCK_NAME
from shared.storage import read_sealed
from train.config import RunConfig
from train.lengths import LENGTHS, check_place, why_mixed, why_other_tokens
from train.run_files import CHECKPOINTS_NAME, IMPORTED_NAME, RUN_NAME
from train.schedule import RESCHEDULING, first_difference

if TYPE_CHECKING:
    from train.preflight import Prepared

CHANGEABLE = {
    *("strategy", "pipeline", "fsdp", "recovery", "checkpoint", "training.microbatch", "training.validate_every"),
    *("training.compile", "training.activation_checkpointing", "training.checkpoint_stride"),
    *("data.global_batch", "model.max_position_embeddings"),
}
"""What of a recipe may differ when a run is continued: nothing that the order of its data depends on, and nothing that
its losses depend on but for the global batch, with which a run goes on where it was in its data (see also RESCHEDULING
and LENGTHS)."""

MAX_PASSES = re.compile(r"recipe\.data\.sources\.\d+\.max_passes")  # the order of the data does not depend on it


def check_run(prepared: "Prepared") -> None:
    """Raises: ConfigError if the directory holds a run of something else or at another place, or no run but files."""
    directory = prepared.request.run
    path = directory / RUN_NAME
    if not exists(path):
        names = [path.name for path in listing(directory)]
        # A run killed in its first moment leaves its locks and what it was writing.
        if IMPORTED_NAME not in names and any(
            not name.startswith(LOCK_NAME) and written_name(name) != RUN_NAME for name in names
        ):
            raise ConfigError(f"{directory} is not empty and not a run (no {RUN_NAME}): name another directory")
        if IMPORTED_NAME in names:
            _check_end(read_sealed(directory / IMPORTED_NAME)["step"], prepared.config.total_steps)
        return
    if not (changed := changes(prepared)):
        return
    before, now = structure(read_sealed(path)["identity"]["recipe"], RunConfig, str(path)), prepared.config
    has_other_length = before.data.sequence_length != now.data.sequence_length
    why = (why_mixed(before.data) or why_other_tokens(before.data, now.data)) if has_other_length else None
    changeable = CHANGEABLE | LENGTHS if has_other_length and why is None else CHANGEABLE
    may_differ = tuple(f"recipe.{key}" for key in changeable)
    fixed = [name for name in changed if not name.startswith(may_differ) and not MAX_PASSES.fullmatch(name)]
    differences = "; ".join(changed[name] for name in fixed) + (f" ({why})" if why else "")
    if any(name.removeprefix("recipe.") not in RESCHEDULING for name in fixed):
        raise ConfigError(f"{directory} is another run: {differences}: name another directory, or give what it had")
    _check_history(directory, before, now, "; ".join(changed.values()))
    if has_other_length:
        from train.checkpoint_directory import read_manifests

        manifests = read_manifests(directory / CHECKPOINTS_NAME)
        check_place(directory, manifests, prepared.datasets, now.data.sequence_length)


def _check_end(step: int, total_steps: int) -> None:
    """Raises: ConfigError if an imported model is at the end of its schedule already."""
    if step >= total_steps:
        raise ConfigError(
            f"the imported model is at step {step:,}, training.total_steps {total_steps:,} is not after it: give "
            f"--training.total-steps, more than {step}"
        )


def _check_history(directory: Path, before: RunConfig, now: RunConfig, differences: str) -> None:
    """Raises: ConfigError if a step that the run has done would have had another learning rate."""
    from train.checkpoint_directory import newest_step  # it needs torch, this module does not

    num_steps = newest_step(directory / CHECKPOINTS_NAME)
    step = first_difference(before, now, num_steps)
    if step is not None:
        raise ConfigError(
            f"{directory} is at step {num_steps}, and step {step} would have had another learning rate "
            f"({differences}): give what it had, or continue a copy whose newest checkpoint is of step {step - 1} or "
            "earlier"
        )


def changes(prepared: "Prepared") -> dict[str, str]:
    """What differs from the run that is in the directory, if one is, by name.

    An option that there was not when it began had the value that it has by default now.
    """
    path = prepared.request.run / RUN_NAME
    if not exists(path):
        return {}
    defaults = flatten({"recipe": json.loads(json.dumps(unstructure(RunConfig())))})
    before = defaults | flatten(read_sealed(path)["identity"])
    now = defaults | flatten(json.loads(json.dumps(prepared.identity)))
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return {name: f"{name} was {before.get(name)}, now {now.get(name)}" for name in names}


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by dotted name; of a list of dicts, their numbers are a part of it.

    >>> flatten({"a": {"b": 1}, "c": 2, "d": [{"e": 3}]})
    {'a.b': 1, 'c': 2, 'd.0.e': 3}
    """
    if isinstance(tree, list | tuple) and tree and isinstance(tree[0], dict):
        tree = {str(number): value for number, value in enumerate(tree)}
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {name: leaf for key, value in tree.items() for name, leaf in flatten(value, f"{prefix}{key}.").items()}
