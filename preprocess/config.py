"""What a build is asked to do, as plain values that are checked once, here."""

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from shared.errors import ConfigError
from shared.format import Selection
from shared.packing import MAX_LENGTH, METHODS
from shared.terminal import safe_text

MIB = 1 << 20
EVERY_ROW = Selection()
DEFAULT_VOCAB_SIZE = 32768
NUM_BYTES = 256  # a byte-level vocabulary has an entry for each of them
END_OF_DOCUMENT = "<|endoftext|>"
PRE_TOKENIZERS = ("gpt2", "llama3")
ENGINES = ("gigatoken", "fastokens", "tokenizers")


@dataclass(frozen=True)
class BuildSettings:
    """How text becomes shards; with the inputs and the tokenizer, this alone decides every byte of a dataset.

    Raises: ConfigError for a value that cannot work.
    """

    chunk_length: int = 2048
    text_column: str = "text"
    shard_bytes: int = 256 * MIB
    on_bad_file: Literal["stop", "skip"] = "stop"
    selection: Selection = EVERY_ROW

    def __post_init__(self) -> None:
        if not 0 <= self.selection.validation_share < 1:
            raise ConfigError(f"--validation-share is {self.selection.validation_share:g}: 0 to below 1 is wanted")
        if self.chunk_length < 1:
            raise ConfigError(f"--chunk-length is {self.chunk_length}: at least 1 token per chunk is wanted")
        if self.shard_bytes < 1:
            raise ConfigError("--shard-megabytes is too small: a shard of at least 1 byte of text is wanted")
        if not self.text_column:
            raise ConfigError("--text-column is empty: the name of the column that holds the text is wanted")


@dataclass(frozen=True)
class TrainerSettings:
    """The tokenizer to train: at most `vocab_size` entries, the special tokens (the end of a document first) included.

    `pre_tokenizer` says how text is cut into the pieces that merges stay inside of.

    Raises: ConfigError for a value that cannot work.
    """

    vocab_size: int = DEFAULT_VOCAB_SIZE
    special_tokens: tuple[str, ...] = (END_OF_DOCUMENT,)
    pre_tokenizer: str = PRE_TOKENIZERS[0]

    def __post_init__(self) -> None:
        for number, token in enumerate(self.special_tokens):
            shown = safe_text(repr(token))
            if not token.strip() or not token.isprintable():
                raise ConfigError(f"special token {shown} is blank or not printable: name it like <|name|>")
            if token in self.special_tokens[:number]:
                end = ", which is the end-of-document token" if token == self.special_tokens[0] else ""
                raise ConfigError(f"special token {shown} is named twice{end}: name it once")
        least = NUM_BYTES + len(self.special_tokens)
        if self.vocab_size < least:
            specials = "1 special token" if least == NUM_BYTES + 1 else f"{least - NUM_BYTES:,} special tokens"
            wanted = f"at least {least:,} ({NUM_BYTES} bytes and {specials}) is wanted"
            raise ConfigError(f"--vocab-size is {self.vocab_size:,}: {wanted}")
        if self.pre_tokenizer not in PRE_TOKENIZERS:
            raise ConfigError(
                f"--pre-tokenizer is {self.pre_tokenizer!r}: one of {', '.join(PRE_TOKENIZERS)} is wanted"
            )


@dataclass(frozen=True)
class TokenizerSettings:
    """Where the tokenizer comes from: the file at `path`, or training on the input when there is none.

    A `vocab_size` or `pre_tokenizer` of None takes what is there: an existing tokenizer as it is, a new one with
    the defaults. `end_of_document` names the token that ends a document, in a new tokenizer too; `special_tokens` are
    the others of a new one.

    Raises: ConfigError for a value that cannot work.
    """

    path: str | None = None
    end_of_document: str | None = None
    vocab_size: int | None = None
    sample_bytes: int = 64 * MIB
    special_tokens: tuple[str, ...] = ()
    pre_tokenizer: str | None = None

    def __post_init__(self) -> None:
        if self.sample_bytes < 1:
            raise ConfigError("--sample-megabytes is too small: at least 1 byte of text to train on is wanted")
        if self.path is None:
            self.trainer()
        elif self.special_tokens or self.pre_tokenizer is not None:
            named = "--special-tokens" if self.special_tokens else "--pre-tokenizer"
            raise ConfigError(
                f"{named} is for a tokenizer to be trained, and --tokenizer gives one: leave one of them out"
            )

    def trainer(self) -> TrainerSettings:
        """How a new tokenizer is trained."""
        end = END_OF_DOCUMENT if self.end_of_document is None else self.end_of_document
        vocab_size = DEFAULT_VOCAB_SIZE if self.vocab_size is None else self.vocab_size
        pre_tokenizer = PRE_TOKENIZERS[0] if self.pre_tokenizer is None else self.pre_tokenizer
        return TrainerSettings(vocab_size, (end, *self.special_tokens), pre_tokenizer)


@dataclass(frozen=True)
class EngineSettings:
    """How text is encoded; nothing here changes a byte of the dataset.

    `engine` is the first to be tried (None: the fastest), `verify` what is compared with a second engine: a "sample" of
    every shard or the "full" text; `token_counts` names a column that holds how many ids each text should have;
    `num_threads` is for this process (None: all cores).

    Raises: ConfigError for a value that cannot work.
    """

    engine: str | None = None
    verify: str = "sample"
    token_counts: str | None = None
    num_threads: int | None = None

    def __post_init__(self) -> None:
        if self.engine is not None and self.engine not in ENGINES:
            raise ConfigError(f"--engine is {self.engine!r}: one of {', '.join(ENGINES)} is wanted")
        if self.verify not in ("sample", "full"):
            raise ConfigError(f"--verify is {self.verify!r}: sample or full is wanted")
        if self.num_threads is not None and self.num_threads < 1:
            raise ConfigError(f"{self.num_threads} threads to encode with: at least 1 is wanted")

    @property
    def verifies_all(self) -> bool:
        """Whether every text is encoded by two engines."""
        return self.verify == "full"


@dataclass(frozen=True)
class Part:
    """Part `number` of `count` of a build: the shards that one of several machines writes.

    Raises: ConfigError if there is no such part.

    >>> [number for number in range(7) if Part(2, 3).owns(number)]
    [1, 4]
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ConfigError(f"--part is {self}: i/n with i from 1 to n is wanted, for example 2/8")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def owns(self, shard: int) -> bool:
        """Whether shard number `shard` is this part's: a pure function, so that parts need not talk."""
        return shard % self.count == self.number - 1


def parse_part(text: str) -> Part:
    """The part that `text`, as in 2/8, names.

    Raises: ConfigError if it names none.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not found:
        raise ConfigError(f"--part is {text!r}: i/n with i from 1 to n is wanted, for example 2/8")
    return Part(int(found[1]), int(found[2]))


@dataclass(frozen=True)
class Execution:
    """Who carries out a build; nothing here changes a byte of it.

    `workers` processes, or the Ray cluster at the address `ray`, or this process if both are None. Only the shards of
    `part`, or all if None. `engines` is how they encode. `steal` takes the directory from who holds it.

    Raises: ConfigError for a value or combination that cannot work.
    """

    workers: int | None = None
    part: Part | None = None
    engines: EngineSettings = EngineSettings()
    ray: str | None = None
    steal: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_workers(self.workers)
        if self.ray is None:
            return
        if self.workers is not None:
            raise ConfigError("--ray with --workers: a cluster works with all of its CPUs, leave --workers out")
        if self.part is not None:
            raise ConfigError("--ray with --part: a cluster writes every part, leave --part out")
        if find_spec("ray") is None:
            raise ConfigError("--ray needs ray, which is not installed: pip install 'argonne[ray]'")


@dataclass(frozen=True)
class PackSettings:
    """Which packing to make: `method` and `length` decide its bytes, `workers` processes write it.

    `steal` takes its directory from who holds it.

    Raises: ConfigError for a value that cannot work.
    """

    length: int
    method: str = "best-fit"
    workers: int = 1
    steal: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.length <= MAX_LENGTH:
            raise ConfigError(f"--length is {self.length}: 1 to {MAX_LENGTH} targets per chunk are wanted")
        if self.method not in METHODS:
            raise ConfigError(f"--method is {self.method!r}: one of {', '.join(METHODS)} is wanted")
        check_workers(self.workers)


def check_workers(workers: int) -> None:
    """Raises: ConfigError for a number of processes that cannot work."""
    if workers < 1:
        raise ConfigError(f"--workers is {workers}: at least 1 process is wanted")


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere; knows of `taskset` and of batch systems that pin
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
