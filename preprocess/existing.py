"""What is in a dataset's directory already: whether it may be gone on with, and which shards are there."""

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from preprocess.job import Job
from preprocess.parts import is_ours
from preprocess.plan import Plan, Settings, differences, index_settings
from preprocess.receipts import complete_shard, receipt_settings
from shared import directories
from shared.directories import exists, is_directory, listing
from shared.errors import ConfigError, FormatError
from shared.format import INDEX_NAME, TOKENIZER_NAME, Shard, read_index, receipt_path
from shared.storage import sha256_file
from shared.terminal import safe_text

RECEIPT_NAME = re.compile(r"\d+\.json")


def make_directory(directory: Path) -> None:
    """Make `directory`, if it is not there.

    Raises: ConfigError if it is something else than a dataset.
    """
    name = safe_text(str(directory))
    if exists(directory) and not is_directory(directory):
        raise ConfigError(f"{name} is a file: name a directory for the token dataset")
    directories.make_directory(directory)
    foreign = [path.name for path in listing(directory) if not is_ours(path.name)]
    if foreign and not exists(directory / TOKENIZER_NAME):
        raise ConfigError(
            f"{name} is not empty and is no token dataset (it holds {safe_text(foreign[0])}): name another directory"
        )


def refuse_another(directory: Path, plan: Plan) -> None:
    """Nothing, if what is in `directory` is of this plan, finished or not, or nothing is there.

    Raises: ConfigError if it was begun with other settings.
    """
    _refuse_differences(directory, plan, _existing_settings(directory, plan))
    if plan.build.on_bad_file == "stop" and exists(directory / INDEX_NAME):
        _refuse_skipped(directory)


def shards_there(job: Job, numbers: Iterable[int], told: str) -> tuple[dict[int, Shard], list[int]]:
    """Which of the shards an earlier run finished, and which not; says why if what it left cannot be used."""
    shards, missing = {}, []
    for number in numbers:
        shard = None
        try:
            shard = complete_shard(job.directory, job.plan, number, job.engines)
        except FormatError as error:
            print(f"{told.format(number)}: {error}", flush=True)
        if shard is None or (shard.num_skipped and job.plan.build.on_bad_file == "stop"):
            missing.append(number)
        else:
            shards[number] = shard
    return shards, missing


def refuse_others(job: Job, missing: Iterable[int]) -> None:
    """Raises: ConfigError if a missing shard is there, but of a build with other settings."""
    for number in missing:
        with suppress(FormatError, FileNotFoundError):  # that was told, or is no difference
            settings = receipt_settings(receipt_path(job.directory, number))
            _refuse_differences(job.directory, job.plan, settings)


def _refuse_differences(directory: Path, plan: Plan, found: Settings) -> None:
    if different := differences(found, plan.settings):
        raise ConfigError(
            f"{safe_text(str(directory))} was built otherwise: {safe_text('; '.join(different))}: "
            "give it the same input and options, or name another directory"
        )


def _refuse_skipped(directory: Path) -> None:
    if skipped := read_index(directory).skipped:
        left_out = safe_text(f"{len(skipped):,} input files, the first {skipped[0].path}")
        raise ConfigError(
            f"{safe_text(str(directory))} was built without {left_out}: give --on-bad-file skip again, or delete its "
            f"{INDEX_NAME} to have them tried again"
        )


def _existing_settings(directory: Path, plan: Plan) -> Settings:
    """The settings that the dataset in `directory`, finished or not, was begun with; the plan's if there is none."""
    if exists(directory / INDEX_NAME):
        return index_settings(read_index(directory))
    for path in [path for path in listing(directory) if RECEIPT_NAME.fullmatch(path.name)]:
        with suppress(FormatError):  # a damaged receipt is reported when its shard is written again
            return receipt_settings(path)
    if exists(directory / TOKENIZER_NAME):
        return {**plan.settings, "tokenizer": sha256_file(directory / TOKENIZER_NAME)}
    return plan.settings
