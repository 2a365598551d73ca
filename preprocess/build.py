"""A build: find the inputs, plan, write every shard that is not there yet, and the index last.

Killing a build at any moment costs the shard it was on. Running it again continues it; running a finished one changes
nothing; and a directory that was made otherwise is refused before anything in it is touched.
"""

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from preprocess.choose import Engines
from preprocess.config import DEFAULT_VOCAB_SIZE, BuildSettings, EngineSettings, TokenizerSettings
from preprocess.plan import Plan, Settings, differences, index_settings, make_plan
from preprocess.progress import Progress
from preprocess.sources import Footer, find_sources, read_footer
from preprocess.tokenizer import LoadedTokenizer, load_tokenizer, make_tokenizer, train_tokenizer
from preprocess.writer import complete_shard, receipt_settings, write_shard
from shared.errors import ConfigError, FormatError, InputError
from shared.format import (
    FORMAT,
    INDEX_NAME,
    TOKENIZER_NAME,
    VERSION,
    Index,
    Shard,
    read_index,
    token_dtype,
    write_index,
)
from shared.storage import TEMPORARY_SUFFIX, exclusive, sha256_file, write_file
from shared.terminal import safe_text

OUR_NAMES = re.compile(r"(\d{5,}(\.documents)?\.(npy|json)|index\.json|tokenizer\.json)(\.tmp)?|\.lock")


def build(
    data: str,
    directory: Path,
    settings: BuildSettings,
    tokenizer_settings: TokenizerSettings,
    engine_settings: EngineSettings | None = None,
) -> Index:
    """The finished dataset of the text in `data`, in `directory`: made, continued, or recognised as done.

    Raises: InputError if text or tokenizer cannot be read; ConfigError if `directory` is something else.
    """
    root, footers = discover(data, settings.text_column)
    given = None
    if tokenizer_settings.path is not None:
        given = load_tokenizer(Path(tokenizer_settings.path), tokenizer_settings.end_of_document)
    _make_directory(directory)
    with exclusive(directory, "build"):
        _remove_leftovers(directory)
        tokenizer = given or _own_tokenizer(directory, root, footers, settings.text_column, tokenizer_settings)
        plan = make_plan(footers, settings, tokenizer.identity)
        _refuse_differences(directory, plan)
        _keep_tokenizer(directory, tokenizer)
        return _finish(directory, root, plan, Engines(tokenizer, engine_settings))


def discover(data: str, column: str) -> tuple[Path, list[Footer]]:
    """The directory that holds the inputs and their footers in order; prints what was found.

    Raises: InputError if there is no text, or a file that cannot be read.
    """
    root, files = find_sources(data)
    footers = [read_footer(file, root, column) for file in files]
    num_rows = sum(footer.num_rows for footer in footers)
    size_mb = sum(footer.text_bytes for footer in footers) / 1e6
    ends = footers[0].path if len(footers) == 1 else f"{footers[0].path} ... {footers[-1].path}"
    files_found = "1 file" if len(files) == 1 else f"{len(files):,} files"
    found = f"found {files_found}, {num_rows:,} rows, {size_mb:,.1f} MB of text in {data}"
    print(safe_text(f"{found}, in natural order: {ends}"), flush=True)
    if not num_rows:
        raise InputError(f"{safe_text(data)} has no rows: name an input that holds text")
    return root, footers


def _make_directory(directory: Path) -> None:
    name = safe_text(str(directory))
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{name} is a file: name a directory for the token dataset")
    directory.mkdir(parents=True, exist_ok=True)
    foreign = sorted(path.name for path in directory.iterdir() if not OUR_NAMES.fullmatch(path.name))
    if foreign and not (directory / TOKENIZER_NAME).exists():
        raise ConfigError(
            f"{name} is not empty and is no token dataset (it holds {safe_text(foreign[0])}): name another directory"
        )


def _remove_leftovers(directory: Path) -> None:
    """Delete what a killed build was writing."""
    for path in directory.glob(f"*{TEMPORARY_SUFFIX}"):
        if OUR_NAMES.fullmatch(path.name):
            path.unlink()


def _own_tokenizer(
    directory: Path, root: Path, footers: Sequence[Footer], column: str, settings: TokenizerSettings
) -> LoadedTokenizer:
    """The tokenizer that an earlier run left in `directory`, else one trained now."""
    path = directory / TOKENIZER_NAME
    if not path.exists():
        raw = train(root, footers, column, settings)
        return make_tokenizer(raw, TOKENIZER_NAME, settings.end_of_document)
    found, wanted = load_tokenizer(path, settings.end_of_document), settings.vocab_size
    size = found.identity.vocab_size
    print(f"using the tokenizer that is already there: {safe_text(str(path))} (vocabulary {size:,})", flush=True)
    if wanted is not None and size > wanted:
        raise ConfigError(
            f"{safe_text(str(directory))} was built otherwise: vocabulary: found {size:,}, wanted {wanted:,}: "
            "leave --vocab-size out, or name another directory"
        )
    return found


def train(root: Path, footers: Sequence[Footer], column: str, settings: TokenizerSettings) -> bytes:
    """The contents of a tokenizer.json trained on the input; prints what it does."""
    wanted = settings.vocab_size or DEFAULT_VOCAB_SIZE
    size_mb = min(settings.sample_bytes, sum(footer.text_bytes for footer in footers)) / 1e6
    print(f"no tokenizer given: training one with {wanted:,} entries on {size_mb:,.1f} MB of the text", flush=True)
    started_s = time.monotonic()
    raw, size = train_tokenizer(root, footers, column, wanted, settings.sample_bytes)
    print(f"trained a tokenizer with {size:,} entries in {time.monotonic() - started_s:,.1f} s", flush=True)
    if size < wanted:
        print(f"the text is too little for {wanted:,} entries: {size:,} is all that repeats in it", flush=True)
    return raw


def _refuse_differences(directory: Path, plan: Plan) -> None:
    if different := differences(_existing_settings(directory, plan), plan.settings):
        raise ConfigError(
            f"{safe_text(str(directory))} was built otherwise: {safe_text('; '.join(different))}: "
            "give it the same input and options, or name another directory"
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


def _keep_tokenizer(directory: Path, tokenizer: LoadedTokenizer) -> None:
    path = directory / TOKENIZER_NAME
    if not path.exists() or sha256_file(path) != tokenizer.identity.sha256:
        write_file(path, [tokenizer.raw])


def _finish(directory: Path, root: Path, plan: Plan, engines: Engines) -> Index:
    """Write the shards that are missing, then the index unless it is there already."""
    compared = engines.settings.verifies_all
    shards = {number: _kept(directory, plan, number, compared) for number in range(len(plan.shards))}
    missing = [number for number, shard in shards.items() if shard is None]
    done = [shard for shard in shards.values() if shard is not None]
    if done and missing:
        print(f"{len(done)} of {len(plan.shards)} shards are already there: writing the others", flush=True)
    if missing:
        engines.announce()
    text_bytes = sum(shard.text_bytes for shard in plan.shards)
    with Progress(len(plan.shards), text_bytes, len(done), sum(shard.text_bytes for shard in done)) as progress:
        for number in missing:
            shards[number] = write_shard(directory, root, plan, number, engines=engines, report=progress.add)
            progress.finish_shard()
    index = _index(plan, [shard for shard in shards.values() if shard is not None])
    if not sum(shard.num_documents for shard in index.shards):
        raise InputError("no documents: every text in the input is null or empty; name an input that holds text")
    name = safe_text(str(directory))
    if (directory / INDEX_NAME).exists() and read_index(directory) == index:
        print(f"{name} is complete: nothing to do" if not missing else f"{name} is complete again")
    else:
        write_index(directory, index)
    print(summary(read_index(directory), progress))
    return read_index(directory)


def _kept(directory: Path, plan: Plan, number: int, compared: bool) -> Shard | None:
    """Shard `number` if an earlier run finished it; says why if what it left cannot be used."""
    try:
        return complete_shard(directory, plan, number, compared=compared)
    except FormatError as error:
        print(f"writing shard {number} again: {error}", flush=True)
        return None


def _index(plan: Plan, shards: list[Shard]) -> Index:
    assert sum(shard.num_rows for shard in shards) == sum(source.num_rows for source in plan.sources)
    return Index(
        format=FORMAT,
        version=VERSION,
        chunk_length=plan.build.chunk_length,
        dtype=token_dtype(plan.tokenizer.vocab_size),
        text_column=plan.build.text_column,
        shard_bytes=plan.build.shard_bytes,
        tokenizer=plan.tokenizer,
        sources=list(plan.sources),
        shards=shards,
    )


def summary(index: Index, progress: Progress) -> str:
    """What the dataset holds and how fast this run was, in one line."""
    documents, chunks, text_bytes = (
        sum(getattr(shard, name) for shard in index.shards) for name in ("num_documents", "num_chunks", "text_bytes")
    )
    speed = progress.new_bytes / 1e6 / max(progress.elapsed_s, 1e-9)
    ran = f"{speed:.2f} MB/s over {progress.elapsed_s:,.1f} s" if progress.new_bytes else "nothing was encoded"
    return (
        f"{documents:,} documents, {index.num_tokens:,} tokens, {chunks:,} chunks of {index.chunk_length:,}, "
        f"{text_bytes / index.num_tokens:.2f} bytes per token; {ran}; fingerprint {index.fingerprint[:12]}"
    )
