"""A build: find the inputs, plan, write every shard that is not there yet, and the index last.

Killing a build at any moment costs the shard it was on. Running it again continues it; running a finished one changes
nothing; and a directory that was made otherwise is refused before anything in it is touched.
"""

import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from preprocess.commit import commit
from preprocess.config import BuildSettings, EngineSettings, Execution, TokenizerSettings
from preprocess.job import Job, write_here
from preprocess.on_ray import write_on_ray
from preprocess.parts import describe_missing, hold, is_ours
from preprocess.plan import Plan, Settings, differences, index_settings, make_plan, needed_bytes
from preprocess.progress import Progress
from preprocess.provide import given_tokenizer, keep_tokenizer, own_tokenizer
from preprocess.skip import read_footers
from preprocess.sources import Footer, find_sources
from preprocess.tokenizer import LoadedTokenizer
from preprocess.workers import write_on_workers
from preprocess.writer import complete_shard, receipt_settings
from shared.errors import ConfigError, FormatError, InputError, UserError
from shared.format import (
    INDEX_NAME,
    TOKENIZER_NAME,
    Index,
    Shard,
    SkippedSource,
    read_index,
    receipt_path,
)
from shared.storage import sha256_file
from shared.terminal import safe_text

Inputs = tuple[Path, list[Footer], list[SkippedSource]]
HERE = Execution()
MAX_SHOWN = 10


def build(
    data: str,
    directory: Path,
    settings: BuildSettings,
    tokenizer_settings: TokenizerSettings,
    execution: Execution = HERE,
) -> Index | None:
    """The finished dataset of the text in `data`, in `directory`: made, continued, or recognised as done.

    None if only a part was asked for and others are still to come.

    Raises: InputError if text or tokenizer cannot be read; ConfigError if `directory` is something else.
    """
    inputs = discover(data, settings)
    given = given_tokenizer(tokenizer_settings)
    _make_directory(directory)
    with hold(directory, execution.part):
        tokenizer = given or own_tokenizer(
            directory, *inputs[:2], settings, tokenizer_settings, may_train=execution.part is None
        )
        return _carry_out(_open_job(directory, inputs, settings, tokenizer, execution.engines), execution)


def finish(data: str, directory: Path, settings: BuildSettings, tokenizer_settings: TokenizerSettings) -> Index:
    """The finished dataset whose parts are all written, in `directory`: only the index is made.

    Raises: UserError if a shard is missing; ConfigError if `directory` is something else.
    """
    inputs = discover(data, settings)
    given = given_tokenizer(tokenizer_settings)
    name = safe_text(str(directory))
    if not directory.is_dir():
        raise ConfigError(f"{name} not found: name the directory that the parts were written to")
    with hold(directory, None):
        tokenizer = given or own_tokenizer(directory, *inputs[:2], settings, tokenizer_settings, may_train=False)
        job = _open_job(directory, inputs, settings, tokenizer, HERE.engines)
        shards, missing = _there(job, range(len(job.plan.shards)), "shard {} is missing")
        _refuse_others(job, missing)
        if missing:
            there = f"{len(shards):,} of {len(job.plan.shards):,} shards are there"
            raise UserError(
                f"{name} is not complete: {there}, missing {describe_missing(directory, missing)}: "
                "run `python -m preprocess tokenize` for these, then finish again"
            )
        with Progress(len(shards), 0, len(shards), 0) as progress:
            return commit(job, shards, progress, num_new=0)


def discover(data: str, settings: BuildSettings) -> Inputs:
    """The directory that holds the inputs, their footers in order, and what was left out; prints what was found.

    Raises: InputError if there is no text, or a file that cannot be read and may not be left out.
    """
    root, files = find_sources(data)
    footers, skipped = read_footers(files, root, settings.text_column, skip_bad=settings.on_bad_file == "skip")
    for source in skipped[:MAX_SHOWN]:
        print(safe_text(f"leaving out {source.path}: {source.reason}"), flush=True)
    if not footers:
        reason = safe_text(f"{skipped[0].path}: {skipped[0].reason}")
        raise InputError(f"{safe_text(data)} has no file that can be read, the first is {reason}: name other input")
    num_rows = sum(footer.num_rows for footer in footers)
    size_mb = sum(footer.text_bytes for footer in footers) / 1e6
    ends = footers[0].path if len(footers) == 1 else f"{footers[0].path} ... {footers[-1].path}"
    files_found = "1 file" if len(footers) == 1 else f"{len(footers):,} files"
    left_out = f" ({len(skipped):,} left out)" if skipped else ""
    found = f"found {files_found}{left_out}, {num_rows:,} rows, {size_mb:,.1f} MB of text in {data}"
    print(safe_text(f"{found}, in natural order: {ends}"), flush=True)
    if not num_rows:
        raise InputError(f"{safe_text(data)} has no rows: name an input that holds text")
    return root, footers, skipped


def _make_directory(directory: Path) -> None:
    name = safe_text(str(directory))
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{name} is a file: name a directory for the token dataset")
    directory.mkdir(parents=True, exist_ok=True)
    foreign = sorted(path.name for path in directory.iterdir() if not is_ours(path.name))
    if foreign and not (directory / TOKENIZER_NAME).exists():
        raise ConfigError(
            f"{name} is not empty and is no token dataset (it holds {safe_text(foreign[0])}): name another directory"
        )


def _open_job(
    directory: Path, inputs: Inputs, settings: BuildSettings, tokenizer: LoadedTokenizer, engines: EngineSettings
) -> Job:
    """What is to be done in `directory`, which now has its tokenizer.

    Raises: ConfigError if the directory was begun with other settings.
    """
    root, footers, skipped = inputs
    plan = make_plan(footers, settings, tokenizer.identity, skipped)
    _refuse_differences(directory, plan, _existing_settings(directory, plan))
    if settings.on_bad_file == "stop" and (directory / INDEX_NAME).exists():
        _refuse_skipped(directory)
    keep_tokenizer(directory, tokenizer)
    return Job(directory, root, plan, tokenizer.raw, engines)


def _refuse_differences(directory: Path, plan: Plan, found: Settings) -> None:
    if different := differences(found, plan.settings):
        raise ConfigError(
            f"{safe_text(str(directory))} was built otherwise: {safe_text('; '.join(different))}: "
            "give it the same input and options, or name another directory"
        )


def _refuse_others(job: Job, missing: Iterable[int]) -> None:
    """Raises: ConfigError if a missing shard is there, but of a build with other settings."""
    for number in missing:
        with suppress(FormatError, FileNotFoundError):  # that was told, or is no difference
            settings = receipt_settings(receipt_path(job.directory, number))
            _refuse_differences(job.directory, job.plan, settings)


def _refuse_skipped(directory: Path) -> None:
    if skipped := read_index(directory).skipped:
        left_out = safe_text(f"{len(skipped):,} input files, the first {skipped[0].path}")
        raise ConfigError(
            f"{safe_text(str(directory))} was built without {left_out}: give --on-bad-file skip again, or delete its "
            f"{INDEX_NAME} to have them tried again"
        )


def _existing_settings(directory: Path, plan: Plan) -> Settings:
    """The settings that the dataset in `directory`, finished or not, was begun with; the plan's if there is none."""
    if (directory / INDEX_NAME).exists():
        return index_settings(read_index(directory))
    for path in sorted(directory.glob("[0-9]*.json")):
        with suppress(FormatError):  # a damaged receipt is reported when its shard is written again
            return receipt_settings(path)
    if (directory / TOKENIZER_NAME).exists():
        return {**plan.settings, "tokenizer": sha256_file(directory / TOKENIZER_NAME)}
    return plan.settings


def _carry_out(job: Job, execution: Execution) -> Index | None:
    """Write the shards that are missing, then the index unless it is there already or not yet time for it."""
    plan, part = job.plan, execution.part
    numbers = [number for number in range(len(plan.shards)) if part is None or part.owns(number)]
    shards, missing = _there(job, numbers, "writing shard {} again")
    if shards and missing:
        print(f"{len(shards)} of {len(numbers)} shards are already there: writing the others", flush=True)
    needed = needed_bytes([plan.shards[i] for i in missing], plan.build.chunk_length, plan.tokenizer.vocab_size)
    check_space(job.directory, shutil.disk_usage(job.directory).free, needed)
    sizes = {number: plan.shards[number].text_bytes for number in numbers}
    with Progress(len(numbers), sum(sizes.values()), len(shards), sum(sizes[i] for i in shards)) as progress:
        if missing:
            shards |= _write(job, missing, execution, progress)
    others, not_yet = _there(job, [i for i in range(len(plan.shards)) if i not in shards], "shard {} is missing")
    _refuse_others(job, not_yet)
    if not_yet:
        there = f"{len(plan.shards) - len(not_yet):,} of {len(plan.shards):,} shards are there"
        print(f"part {part} is written; {there}; the part that ends last writes the index, else `finish` does")
        return None
    return commit(job, shards | others, progress, num_new=len(missing))


def _write(job: Job, numbers: Sequence[int], execution: Execution, progress: Progress) -> dict[int, Shard]:
    if execution.workers is None and execution.ray is None:
        return write_here(job, numbers, progress)
    job.open(say=print)  # once for all workers, which find its results in the cache
    if execution.workers is not None:
        return write_on_workers(job, numbers, execution.workers, progress)
    assert execution.ray is not None
    return write_on_ray(job, numbers, execution.ray, progress)


def _there(job: Job, numbers: Iterable[int], told: str) -> tuple[dict[int, Shard], list[int]]:
    """Which of the shards an earlier run finished, and which not; says why if what it left cannot be used."""
    shards, missing = {}, []
    for number in numbers:
        shard = None
        try:
            shard = complete_shard(job.directory, job.plan, number, compared=job.engines.verifies_all)
        except FormatError as error:
            print(f"{told.format(number)}: {error}", flush=True)
        if shard is None or (shard.num_skipped and job.plan.build.on_bad_file == "stop"):
            missing.append(number)
        else:
            shards[number] = shard
    return shards, missing


def check_space(directory: Path, free_bytes: int, wanted_bytes: int) -> None:
    """Nothing, if a disk with `free_bytes` holds what is to be written (`plan.needed_bytes`).

    Raises: UserError if it does not.
    """
    if wanted_bytes > free_bytes:
        raise UserError(
            f"{safe_text(str(directory))} has {free_bytes / 1e9:,.2f} GB free, about {wanted_bytes / 1e9:,.2f} GB are "
            "wanted for the shards to write: make room or name another directory"
        )
