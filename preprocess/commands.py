"""The commands of `preprocess`, each with its options; what a command needs is loaded when it runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import tyro

from preprocess.config import (
    MIB,
    BuildSettings,
    EngineSettings,
    Execution,
    PackSettings,
    TokenizerSettings,
    num_cores,
    parse_part,
)
from preprocess.options import (
    REPORT_BYTES,
    DocumentsOptions,
    DownloadOptions,
    DuplicatesOptions,
    FetchOptions,
    FinishOptions,
    InspectOptions,
    PackOptions,
    PushOptions,
    SampleCorpusOptions,
    TokenizeOptions,
    TokenizerOptions,
    TokenizerReportOptions,
    VerifyOptions,
)
from shared.command import Command
from shared.directories import exists, make_directory
from shared.errors import ConfigError
from shared.format import INDEX_NAME, Selection
from shared.storage import write_file
from shared.terminal import safe_text
from shared.urls import remote_url

T = TypeVar("T")


def tokenize(argv: Sequence[str]) -> None:
    """Text -> token dataset; continues one that was interrupted."""
    options = _parse("tokenize", TokenizeOptions, argv)
    settings, tokenizer = options.build_settings(), options.tokenizer_settings()
    workers = num_cores() if options.workers is None and options.ray is None else options.workers
    part = None if options.part is None else parse_part(options.part)
    engines = EngineSettings(options.engine, options.verify, options.token_counts)
    execution = Execution(workers, part, engines, options.ray, options.steal)
    url = remote_url(options.tokens)
    tokens = options.tokens if url is None else _place_here(url)
    data = _text_here(options.data)
    from preprocess.build import build

    build(data, tokens, settings, tokenizer, execution)
    if url is not None and exists(tokens / INDEX_NAME):  # the last part of a build writes it
        from shared.remote import push

        push(tokens, url)


def finish(argv: Sequence[str]) -> None:
    """Write the index when all parts are done."""
    options = _parse("finish", FinishOptions, argv)
    settings, tokenizer = options.build_settings(), options.tokenizer_settings()
    from preprocess.build import finish

    finish(options.data, options.tokens, settings, tokenizer, options.steal)


def duplicates(argv: Sequence[str]) -> None:
    """Find the texts that repeat others, before a build in parts."""
    options = _parse("duplicates", DuplicatesOptions, argv)
    settings, tokenizer = replace(options, drop_duplicates=True).build_settings(), options.tokenizer_settings()
    workers = num_cores() if options.workers is None else options.workers
    from preprocess.build import find_duplicates

    find_duplicates(options.data, options.tokens, settings, tokenizer, Execution(workers, steal=options.steal))


def pack(argv: Sequence[str]) -> None:
    """Chunks that respect documents, as small index files beside a finished dataset."""
    options = _parse("pack", PackOptions, argv)
    workers = num_cores() if options.workers is None else options.workers
    settings = PackSettings(options.length, options.method, workers, options.steal)
    from preprocess.pack import pack

    pack(options.tokens, settings)


def tokenizer(argv: Sequence[str]) -> None:
    """Train a tokenizer alone."""
    options = _parse("tokenizer", TokenizerOptions, argv)
    sample_bytes = int(options.sample_megabytes * MIB)
    trained = (options.vocab_size, sample_bytes, options.special_tokens, options.pre_tokenizer)
    settings = TokenizerSettings(None, options.end_of_document, *trained)
    if exists(options.out):
        raise ConfigError(f"{safe_text(str(options.out))} exists: name a file that does not")
    from preprocess.discover import discover
    from preprocess.provide import train
    from preprocess.sampling import Sample
    from preprocess.tokenizer_report import summarize

    selection = Selection(options.where)
    found = discover(options.data, BuildSettings(text_column=options.text_column, selection=selection))
    sample = Sample(found.root, found.footers, options.text_column, sample_bytes, selection=selection)
    raw = train(sample, settings.trainer())
    make_directory(options.out.parent)
    write_file(options.out, [raw])
    looked_at = replace(sample, size_bytes=min(sample_bytes, REPORT_BYTES))
    print(summarize(options.out, settings.trainer().special_tokens[0], looked_at))


def tokenizer_report(argv: Sequence[str]) -> None:
    """What a tokenizer makes of a sample: bytes per token by language, unused ids, longest entries."""
    options = _parse("tokenizer-report", TokenizerReportOptions, argv)
    sample_bytes = TokenizerSettings(sample_bytes=int(options.sample_megabytes * MIB)).sample_bytes
    from preprocess import tokenizer_report
    from preprocess.sampling import open_sample

    sample = open_sample(options.data, options.text_column, sample_bytes, Selection(options.where))
    tokenizer_report.report(options.tokenizer, options.end_of_document, sample, as_json=options.as_json)


def inspect(argv: Sequence[str]) -> None:
    """What a dataset holds, or some chunks of it."""
    options = _parse("inspect", InspectOptions, argv)
    from preprocess.inspecting import inspect

    inspect(options)


def documents(argv: Sequence[str]) -> None:
    """Input rows of a dataset: id, url and date, found by either or by a piece of text."""
    options = _parse("documents", DocumentsOptions, argv)
    from preprocess.documents import tell

    if (options.find is None) == (not options.rows):
        raise ConfigError("either FILE:ROW or --find is wanted: see python -m preprocess documents --help")
    tell(options.tokens, options.data, options.rows, options.find)


def verify(argv: Sequence[str]) -> None:
    """Read a dataset against its checksums."""
    options = _parse("verify", VerifyOptions, argv)
    from preprocess.verify import verify

    verify(options.tokens)


def sample_corpus(argv: Sequence[str]) -> None:
    """Parquet files made of this Python installation's own text."""
    options = _parse("sample-corpus", SampleCorpusOptions, argv)
    from preprocess.corpus import sample_corpus

    sample_corpus(options.out, int(options.megabytes * 1e6))


def download(argv: Sequence[str]) -> None:
    """Parquet files from the Hugging Face Hub, each checked against its sha256."""
    options = _parse("download", DownloadOptions, argv)
    from preprocess.download import download

    folder = options.folder or f"data/{options.crawl}"
    download(options.repository, folder, options.revision, options.files, options.out)


def fetch(argv: Sequence[str]) -> None:
    """Copy a directory of text or a dataset here, from s3:// or hf://."""
    options = _parse("fetch", FetchOptions, argv)
    from shared.remote import fetch

    fetch(options.url, options.out)


def push(argv: Sequence[str]) -> None:
    """Copy a finished dataset elsewhere, its index last."""
    options = _parse("push", PushOptions, argv)
    from shared.remote import push

    push(options.tokens, options.url)


def launch(argv: Sequence[str]) -> None:
    """Print or submit the job script of a build: arrays of tasks until the dataset is finished."""
    from preprocess.jobs import launch

    launch(argv)


def slice_of_build(argv: Sequence[str]) -> int:
    """For job scripts: tell that a task of an array begins or how it ended, and hear whether the chain goes on."""
    from preprocess.slices import SliceOptions, slice_of_build

    return slice_of_build(_parse("slice", SliceOptions, argv))


def _place_here(url: str) -> Path:
    from shared.remote import place_here

    return place_here(url)


def _text_here(data: str) -> str:
    """`data`, or where its files are here, to which they are brought."""
    if remote_url(data) is None:
        return data
    from preprocess.sources import READERS
    from shared.remote import copied

    return str(copied(data, tuple(READERS)))


def _parse(command: str, options: type[T], argv: Sequence[str]) -> T:
    return tyro.cli(options, args=list(argv), prog=f"python -m preprocess {command}")


COMMANDS: dict[str, Command] = {
    "tokenize": tokenize,
    "finish": finish,
    "duplicates": duplicates,
    "pack": pack,
    "tokenizer": tokenizer,
    "tokenizer-report": tokenizer_report,
    "inspect": inspect,
    "documents": documents,
    "verify": verify,
    "sample-corpus": sample_corpus,
    "download": download,
    "fetch": fetch,
    "push": push,
    "launch": launch,
    "slice": slice_of_build,
}
