"""The command line of `preprocess`: text -> token dataset. `python -m preprocess --help` lists the commands."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from preprocess.config import MIB, BuildSettings, EngineSettings, Execution, TokenizerSettings, num_cores, parse_part
from shared.command import run_command
from shared.errors import ConfigError
from shared.storage import write_file

T = TypeVar("T")


@dataclass(frozen=True)
class FinishOptions:
    """Write the index of a token dataset whose parts are all written, or say what is missing."""

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
    on_bad_file: Literal["stop", "skip"] = "stop"
    """What to do about an input file that cannot be read: stop, or leave it out whole and say so in the index."""

    def build_settings(self) -> BuildSettings:
        """What decides the bytes."""
        shard_bytes = int(self.shard_megabytes * MIB)
        return BuildSettings(self.chunk_length, self.text_column, shard_bytes, self.on_bad_file)

    def tokenizer_settings(self) -> TokenizerSettings:
        """Where the tokenizer comes from."""
        sample_bytes = int(self.sample_megabytes * MIB)
        return TokenizerSettings(self.tokenizer, self.end_of_document, self.vocab_size, sample_bytes)


@dataclass(frozen=True)
class TokenizeOptions(FinishOptions):
    """Turn parquet text into a token dataset; running it again continues it."""

    workers: int | None = None
    """Processes that write shards, of one thread each (None: one for each core)."""
    ray: str | None = None
    """Write the shards on a Ray cluster: auto, local, host:port or ray://host:port; its nodes share DATA and TOKENS."""
    part: str | None = None
    """i/n: write only every n-th shard, as task i of a job array in one shared directory; the last writes the index."""
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
    settings, tokenizer = options.build_settings(), options.tokenizer_settings()
    workers = num_cores() if options.workers is None and options.ray is None else options.workers
    part = None if options.part is None else parse_part(options.part)
    execution = Execution(workers, part, EngineSettings(options.engine, options.verify), options.ray)
    from preprocess.build import build

    build(options.data, options.tokens, settings, tokenizer, execution)


def finish(argv: Sequence[str]) -> None:
    """Write the index when all parts are done."""
    options = _parse("finish", FinishOptions, argv)
    settings, tokenizer = options.build_settings(), options.tokenizer_settings()
    from preprocess.build import finish

    finish(options.data, options.tokens, settings, tokenizer)


def tokenizer(argv: Sequence[str]) -> None:
    """Train a tokenizer alone."""
    options = _parse("tokenizer", TokenizerOptions, argv)
    sample_bytes = int(options.sample_megabytes * MIB)
    settings = TokenizerSettings(vocab_size=options.vocab_size, sample_bytes=sample_bytes)
    if options.out.exists():
        raise ConfigError(f"{options.out} exists: name a file that does not")
    from preprocess.build import discover
    from preprocess.provide import train

    root, footers, _ = discover(options.data, BuildSettings(text_column=options.text_column))
    raw = train(root, footers, BuildSettings(text_column=options.text_column), settings)
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
    "finish": finish,
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
