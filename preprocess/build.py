"""A build: find the inputs, plan, write every shard that is not there yet, and the index last.

Killing a build at any moment costs the shard it was on. Running it again continues it; running a finished one changes
nothing; and a directory that was made otherwise is refused before anything in it is touched. A share of the texts that
is kept apart for validation is a dataset of its own, in the first one's directory: the same build once more.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from preprocess.commit import commit
from preprocess.config import BuildSettings, EngineSettings, Execution, TokenizerSettings
from preprocess.discover import Inputs, discover
from preprocess.duplicates import DigestJob, has_list, join_digests, remove_digests, undigested
from preprocess.existing import make_directory, refuse_another, refuse_others, shards_there
from preprocess.job import Done_co, Job, Work, write_here
from preprocess.on_ray import write_on_ray
from preprocess.parts import describe_missing, hold
from preprocess.plan import make_plan, needed_bytes
from preprocess.progress import Progress
from preprocess.provide import given_tokenizer, keep_tokenizer, own_tokenizer
from preprocess.tokenizer import LoadedTokenizer
from preprocess.workers import write_on_workers
from shared.directories import is_directory
from shared.errors import ConfigError, UserError
from shared.format import TOKENIZER_NAME, VALIDATION_NAME, Index
from shared.terminal import safe_text

HERE = Execution()
Split = tuple[Path, BuildSettings, TokenizerSettings]


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
    inputs = discover(data, settings, execution.engines.token_counts)
    splits = _splits(directory, settings, tokenizer_settings)
    index, *_ = [_build_split(inputs, split, directory, execution) for split in splits]
    return index


def finish(
    data: str, directory: Path, settings: BuildSettings, tokenizer_settings: TokenizerSettings, steal: bool = False
) -> Index:
    """The finished dataset whose parts are all written, in `directory`: only the index is made.

    Raises: UserError if a shard is missing; ConfigError if `directory` is something else.
    """
    inputs = discover(data, settings)
    splits = _splits(directory, settings, tokenizer_settings)
    index, *_ = [_finish_split(inputs, split, directory, steal) for split in splits]
    return index


def find_duplicates(
    data: str, directory: Path, settings: BuildSettings, tokenizer_settings: TokenizerSettings, execution: Execution
) -> None:
    """Find the rows that are dropped because they repeat others, and keep the list of them in `directory`.

    Raises: as `build`.
    """
    inputs = discover(data, settings)
    given = given_tokenizer(tokenizer_settings)
    make_directory(directory)
    with hold(directory, None, execution.steal):
        tokenizer = given or own_tokenizer(directory, inputs, settings, tokenizer_settings, may_train=True)
        job = _open_job(directory, inputs, settings, tokenizer, execution.engines, directory)
        _ensure_duplicates(job, execution)


def _splits(directory: Path, settings: BuildSettings, tokenizer: TokenizerSettings) -> Iterator[Split]:
    """The datasets to make: that for training, and if a share is kept apart that for validation, from its tokenizer."""
    yield directory, settings, tokenizer
    if settings.selection.validation_share:
        same = TokenizerSettings(str(directory / TOKENIZER_NAME), tokenizer.end_of_document)
        selection = replace(settings.selection, split="validation")
        yield directory / VALIDATION_NAME, replace(settings, selection=selection), same


def _build_split(inputs: Inputs, split: Split, base: Path, execution: Execution) -> Index | None:
    directory, settings, tokenizer_settings = split
    given = given_tokenizer(tokenizer_settings)
    make_directory(directory)
    with hold(directory, execution.part, execution.steal):
        may_train = execution.part is None
        tokenizer = given or own_tokenizer(directory, inputs, settings, tokenizer_settings, may_train=may_train)
        job = _open_job(directory, inputs, settings, tokenizer, execution.engines, base)
        if settings.selection.drop_duplicates:
            _ensure_duplicates(job, execution)
        return _carry_out(job, execution)


def _finish_split(inputs: Inputs, split: Split, base: Path, steal: bool) -> Index:
    directory, settings, tokenizer_settings = split
    given = given_tokenizer(tokenizer_settings)
    name = safe_text(str(directory))
    if not is_directory(directory):
        raise ConfigError(f"{name} not found: name the directory that the parts were written to")
    with hold(directory, None, steal):
        tokenizer = given or own_tokenizer(directory, inputs, settings, tokenizer_settings, may_train=False)
        job = _open_job(directory, inputs, settings, tokenizer, HERE.engines, base)
        shards, missing = shards_there(job, range(len(job.plan.shards)), "shard {} is missing")
        refuse_others(job, missing)
        if missing:
            there = f"{len(shards):,} of {len(job.plan.shards):,} shards are there"
            raise UserError(
                f"{name} is not complete: {there}, missing {describe_missing(directory, missing)}: "
                "run `python -m preprocess tokenize` for these, then finish again"
            )
        with Progress(len(shards), 0, len(shards), 0) as progress:
            return commit(job, shards, progress, num_new=0)


def _open_job(
    directory: Path,
    inputs: Inputs,
    settings: BuildSettings,
    tokenizer: LoadedTokenizer,
    engines: EngineSettings,
    base: Path,
) -> Job:
    """What is to be done in `directory`, which now has its tokenizer; `base` is where a list of duplicates is.

    Raises: ConfigError if the directory was begun with other settings.
    """
    plan = make_plan(inputs.footers, settings, tokenizer.identity, inputs.skipped)
    refuse_another(directory, plan)
    keep_tokenizer(directory, tokenizer)
    duplicates = base if settings.selection.drop_duplicates else None
    return Job(directory, inputs.root, plan, tokenizer.raw, engines, duplicates)


def _ensure_duplicates(job: Job, execution: Execution) -> None:
    """Find the duplicates, unless they are known.

    Raises: ConfigError if only a part is asked for: parts would all hash everything.
    """
    directory, plan = job.duplicates, job.plan
    assert directory is not None
    if has_list(directory, plan):
        remove_digests(directory, plan)  # a kill may have left some
        return
    if execution.part is not None:
        raise ConfigError(
            f"{safe_text(str(directory))} has no list of duplicates yet, and a part of a build never makes one: run "
            "`python -m preprocess duplicates` with the same options first"
        )
    missing = undigested(directory, plan)
    sizes = [shard.text_bytes for shard in plan.shards]
    print(f"looking for duplicates among {sum(source.num_rows for source in plan.sources):,} rows", flush=True)
    done = sum(sizes) - sum(sizes[number] for number in missing)
    with Progress(len(sizes), sum(sizes), len(sizes) - len(missing), done) as progress:
        if missing:
            _on(execution, DigestJob(directory, job.root, plan), missing, progress)
    print(f"{join_digests(directory, plan):,} rows repeat an earlier one", flush=True)


def _carry_out(job: Job, execution: Execution) -> Index | None:
    """Write the shards that are missing, then the index unless it is there already or not yet time for it."""
    plan, part = job.plan, execution.part
    numbers = [number for number in range(len(plan.shards)) if part is None or part.owns(number)]
    shards, missing = shards_there(job, numbers, "writing shard {} again")
    if shards and missing:
        print(f"{len(shards)} of {len(numbers)} shards are already there: writing the others", flush=True)
    needed = needed_bytes([plan.shards[i] for i in missing], plan.build.chunk_length, plan.tokenizer.vocab_size)
    check_space(job.directory, shutil.disk_usage(job.directory).free, needed)
    sizes = {number: plan.shards[number].text_bytes for number in numbers}
    with Progress(len(numbers), sum(sizes.values()), len(shards), sum(sizes[i] for i in shards)) as progress:
        if missing:
            shards |= _on(execution, job, missing, progress)
    others, not_yet = shards_there(job, [i for i in range(len(plan.shards)) if i not in shards], "shard {} is missing")
    refuse_others(job, not_yet)
    if not_yet:
        there = f"{len(plan.shards) - len(not_yet):,} of {len(plan.shards):,} shards are there"
        print(f"part {part} is written; {there}; the part that ends last writes the index, else `finish` does")
        return None
    return commit(job, shards | others, progress, num_new=len(missing))


def _on(execution: Execution, work: Work[Done_co], numbers: Sequence[int], progress: Progress) -> dict[int, Done_co]:
    """What `work` has done with each of the shards, where it was asked for."""
    if execution.ray is not None:
        return write_on_ray(work, numbers, execution.ray, progress)
    if execution.workers is not None:
        return write_on_workers(work, numbers, execution.workers, progress)
    return write_here(work, numbers, progress)


def check_space(directory: Path, free_bytes: int, wanted_bytes: int) -> None:
    """Nothing, if a disk with `free_bytes` holds what is to be written (`plan.needed_bytes`).

    Raises: UserError if it does not.
    """
    if wanted_bytes > free_bytes:
        raise UserError(
            f"{safe_text(str(directory))} has {free_bytes / 1e9:,.2f} GB free, about {wanted_bytes / 1e9:,.2f} GB are "
            "wanted for the shards to write: make room or name another directory"
        )
