"""The command line of `preprocess`: text -> token dataset. `python -m preprocess --help` lists the commands."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from preprocess.config import MIB, BuildSettings, EngineSettings, TokenizerSettings
from shared.command import run_command
from shared.errors import ConfigError
from shared.storage import write_file

T = TypeVar("T")


@dataclass(frozen=True)
class TokenizeOptions:
    """Turn parquet text into a token dataset; running it again continues it."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A directory of parquet files, a glob pattern or one file."""
    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")]
    """The directory of the token dataset."""
    tokenizer: str | None = None
    """A tokenizer.json; without it, the one already in the dataset's directory, else one trained on the text."""
    vocab_size: int | None = None
    """Entries of the tokenizer when it is trained (None: 32768)."""
    sample_megabytes: float = 64
    """Text to train the tokenizer on, spread evenly over the input, in MiB."""
    end_of_document: str | None = None
    """The token that ends a document (None: the first well-known one)."""
    chunk_length: int = 2048
    """Targets in a chunk."""
    text_column: str = "text"
    """The parquet column that holds the text."""
    shard_megabytes: float = 256
    """Text in a shard, in MiB: a shard is closed when it has that much."""
    engine: Literal["gigatoken", "fastokens", "tokenizers"] | None = None
    """The engine to try first (None: the fastest); the dataset is the same with all of them."""
    verify: Literal["sample", "full"] = "sample"
    """What is encoded by a second engine and compared: a sample of every shard, or all of it."""


@dataclass(frozen=True)
class TokenizerOptions:
    """Train a byte-level BPE tokenizer on parquet text."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A directory of parquet files, a glob pattern or one file."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The tokenizer.json to write."""
    vocab_size: int = 32768
    """Entries, the end-of-document token included."""
    sample_megabytes: float = 64
    """Text to train on, spread evenly over the input, in MiB."""
    text_column: str = "text"
    """The parquet column that holds the text."""


@dataclass(frozen=True)
class InspectOptions:
    """Show what a token dataset holds."""

    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")]
    """The directory of the token dataset."""
    chunk: int | None = None
    """Show this chunk (counted over all shards) instead of the whole."""
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False
    """Print JSON for programs."""


@dataclass(frozen=True)
class VerifyOptions:
    """Read all of a token dataset against its checksums."""

    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")]
    """The directory of the token dataset."""


@dataclass(frozen=True)
class SampleCorpusOptions:
    """Make a small real corpus from this Python installation's own text."""

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The directory for its parquet files."""
    megabytes: float = 16
    """Text to collect, in millions of bytes."""


def tokenize(argv: Sequence[str]) -> None:
    """Text -> token dataset; continues one that was interrupted."""
    options = _parse("tokenize", TokenizeOptions, argv)
    settings = BuildSettings(options.chunk_length, options.text_column, int(options.shard_megabytes * MIB))
    sample_bytes = int(options.sample_megabytes * MIB)
    tokenizer = TokenizerSettings(options.tokenizer, options.end_of_document, options.vocab_size, sample_bytes)
    from preprocess.build import build

    build(options.data, options.tokens, settings, tokenizer, EngineSettings(options.engine, options.verify))


def tokenizer(argv: Sequence[str]) -> None:
    """Train a tokenizer alone."""
    options = _parse("tokenizer", TokenizerOptions, argv)
    sample_bytes = int(options.sample_megabytes * MIB)
    settings = TokenizerSettings(vocab_size=options.vocab_size, sample_bytes=sample_bytes)
    if options.out.exists():
        raise ConfigError(f"{options.out} exists: name a file that does not")
    from preprocess.build import discover, train

    root, footers = discover(options.data, options.text_column)
    raw = train(root, footers, options.text_column, settings)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_file(options.out, [raw])


def inspect(argv: Sequence[str]) -> None:
    """What a dataset holds, or one chunk of it."""
    options = _parse("inspect", InspectOptions, argv)
    from preprocess import report

    if options.chunk is None:
        report.inspect(options.tokens, as_json=options.as_json)
    else:
        report.inspect_chunk(options.tokens, options.chunk, as_json=options.as_json)


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


def _parse(command: str, options: type[T], argv: Sequence[str]) -> T:
    return tyro.cli(options, args=list(argv), prog=f"python -m preprocess {command}")


COMMANDS = {
    "tokenize": tokenize,
    "tokenizer": tokenizer,
    "inspect": inspect,
    "verify": verify,
    "sample-corpus": sample_corpus,
}


def main(argv: Sequence[str]) -> int:
    """Exit code of the command line `argv`."""
    return run_command("preprocess", COMMANDS, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
