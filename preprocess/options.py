"""What each command of `preprocess` can be told: the command line, as dataclasses."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from preprocess.config import MIB, BuildSettings, TokenizerSettings
from shared.format import Selection

REPORT_BYTES = 16 * MIB


@dataclass(frozen=True)
class FinishOptions:
    """Write the index of a token dataset whose parts are all written, or say what is missing."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A directory of *.parquet, *.jsonl and *.jsonl.zst files, a glob pattern or one file."""
    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")]
    """The directory of the token dataset."""
    tokenizer: str | None = None
    """A tokenizer.json; without it, the one already in the dataset's directory, else one trained on the text."""
    vocab_size: int | None = None
    """Entries of the tokenizer when it is trained, special tokens included (None: 32768)."""
    sample_megabytes: float = 64
    """Text to train the tokenizer on, spread evenly over the input, in MiB."""
    end_of_document: str | None = None
    """The token that ends a document (None: the first well-known one; <|endoftext|> when it is trained)."""
    special_tokens: tuple[str, ...] = ()
    """Other special tokens of the tokenizer when it is trained: they have ids, and no text gives them."""
    pre_tokenizer: Literal["gpt2", "llama3"] | None = None
    """How the tokenizer cuts text when it is trained (None: gpt2)."""
    chunk_length: int = 2048
    """Targets in a chunk."""
    text_column: str = "text"
    """The column (in JSON lines the key) that holds the text."""
    shard_megabytes: float = 256
    """Text in a shard, in MiB: a shard is closed when it has that much."""
    on_bad_file: Literal["stop", "skip"] = "stop"
    """What to do about an input file that cannot be read: stop, or leave it out whole and say so in the index."""
    where: str | None = None
    """Only rows for which this holds are documents, as in 'language == "en" and language_score > 0.8' (None: all)."""
    drop_duplicates: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Of texts that are equal byte for byte, keep only the first."""
    validation_share: float = 0.0
    """The share of the texts, drawn by their hash, that is kept apart as a dataset of its own in TOKENS/validation."""
    steal: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Take the directory over from a process that holds it and is gone for good; should it go on, it writes no more."""

    def build_settings(self) -> BuildSettings:
        """What decides the bytes."""
        shard_bytes = int(self.shard_megabytes * MIB)
        selection = Selection(self.where, self.drop_duplicates, self.validation_share)
        return BuildSettings(self.chunk_length, self.text_column, shard_bytes, self.on_bad_file, selection)

    def tokenizer_settings(self) -> TokenizerSettings:
        """Where the tokenizer comes from."""
        sample_bytes = int(self.sample_megabytes * MIB)
        trained = (self.vocab_size, sample_bytes, self.special_tokens, self.pre_tokenizer)
        return TokenizerSettings(self.tokenizer, self.end_of_document, *trained)


@dataclass(frozen=True)
class DuplicatesOptions(FinishOptions):
    """Find the texts that repeat others, for a build in parts that is to drop them; one in one piece does it itself."""

    workers: int | None = None
    """Processes that read text, of one thread each (None: one for each core)."""


@dataclass(frozen=True)
class TokenizeOptions(FinishOptions):
    """Turn text into a token dataset; running it again continues it."""

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
    token_counts: str | None = None
    """A column that holds how many ids each text has, compared for every document (FineWeb's token_count: GPT-2's)."""


@dataclass(frozen=True)
class TokenizerOptions:
    """Train a byte-level BPE tokenizer on text."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A directory of *.parquet, *.jsonl and *.jsonl.zst files, a glob pattern or one file."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The tokenizer.json to write."""
    vocab_size: int = 32768
    """Entries, special tokens included."""
    sample_megabytes: float = 64
    """Text to train on, spread evenly over the input, in MiB."""
    end_of_document: str | None = None
    """The token that ends a document, which gets id 0 (None: <|endoftext|>)."""
    special_tokens: tuple[str, ...] = ()
    """Other special tokens, which get the ids from 1 on in this order: no text gives them."""
    pre_tokenizer: Literal["gpt2", "llama3"] = "gpt2"
    """How text is cut into the pieces that merges stay inside of; gpt2 trains several times as fast."""
    text_column: str = "text"
    """The column (in JSON lines the key) that holds the text."""
    where: str | None = None
    """Only rows for which this holds are documents, as in 'language == "en" and language_score > 0.8' (None: all)."""


@dataclass(frozen=True)
class PackOptions:
    """Cut the tokens of a dataset into chunks that respect its documents, beside its plain stream."""

    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")]
    """The directory of the token dataset."""
    length: int
    """Targets in a chunk: the data.sequence-length of the runs that read it."""
    method: Literal["best-fit", "whole"] = "best-fit"
    """best-fit keeps every token and cuts only longer documents; whole leaves those out."""
    workers: int | None = None
    """Processes that write shards (None: one for each core)."""
    steal: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Take the packing over from a process that holds it and is gone for good; should it go on, it writes no more."""


@dataclass(frozen=True)
class TokenizerReportOptions:
    """Show what a tokenizer makes of a sample of text: bytes per token by language, unused ids, entries."""

    tokenizer: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENIZER")]
    """A tokenizer.json."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A directory of *.parquet, *.jsonl and *.jsonl.zst files, a glob pattern or one file."""
    sample_megabytes: float = REPORT_BYTES / MIB
    """Text to look at, spread evenly over the input, in MiB."""
    end_of_document: str | None = None
    """The token that ends a document (None: the first well-known one)."""
    text_column: str = "text"
    """The column (in JSON lines the key) that holds the text."""
    where: str | None = None
    """Only rows for which this holds are documents, as in 'language == "en" and language_score > 0.8' (None: all)."""
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False
    """Print JSON for programs: all languages, all unused ids."""


@dataclass(frozen=True)
class InspectOptions:
    """Show what a token dataset holds."""

    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")]
    """The directory of the token dataset."""
    chunk: int | None = None
    """Show this chunk (counted over all shards) instead of the whole; on a page, before the others."""
    sample: int | None = None
    """Show so many chunks drawn at random instead of the whole (on a page None: 12, fewer if they are long)."""
    seed: int = 0
    """Which chunks are drawn, and which part of a large dataset is looked at to count ids and documents."""
    verify: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Read everything against its checksums, and show for each shard what was found."""
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False
    """Print JSON for programs."""
    data: str | None = None
    """The inputs, for urls and dates of documents (None: as `make tokenize` has it, TOKENS without its "-tokens")."""
    html: Path | None = None
    """Write a page for a browser to this file: one file that needs no other."""


@dataclass(frozen=True)
class DocumentsOptions:
    """Tell of documents of a dataset what their input rows say: a line of JSON for each."""

    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")]
    """The directory of the token dataset."""
    rows: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILE:ROW")] = ()
    """Input rows; - reads them from standard input, as this command prints them."""
    find: str | None = None
    """Instead, the documents with this id or url, or if none has, those in whose text it stands."""
    data: str | None = None
    """The inputs that the dataset was made of (None: as `make tokenize` has it, TOKENS without its "-tokens")."""


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


@dataclass(frozen=True)
class DownloadOptions:
    """Bring parquet files of a dataset on the Hugging Face Hub here, checked against its sha256 list; resumes."""

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Directory for the files."""
    crawl: str = "CC-MAIN-2025-26"
    """Of FineWeb: the files of data/CRAWL."""
    files: str = ":"
    """Which of them, in natural order: first:end, or one number."""
    repository: str = "HuggingFaceFW/fineweb"
    folder: str | None = None
    """In the repository (None: data/CRAWL)."""
    revision: str = "main"
    """A commit, or a branch whose commit of today is kept to by all later downloads to OUT."""


@dataclass(frozen=True)
class FetchOptions:
    """Copy a directory elsewhere (s3://bucket/dir, hf://datasets/owner/name/dir) here, checked; goes on by files."""

    url: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URL")]
    """The directory: of text, or a finished dataset."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Directory for its files."""


@dataclass(frozen=True)
class PushOptions:
    """Copy a finished dataset elsewhere, its index last."""

    tokens: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TOKENS")]
    """The directory of the token dataset."""
    url: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URL")]
    """Where to: s3://bucket/dir."""
