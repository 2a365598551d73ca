"""What a build is asked to do, as plain values that are checked once, here."""

from dataclasses import dataclass

from shared.errors import ConfigError

MIB = 1 << 20
DEFAULT_VOCAB_SIZE = 32768
MIN_VOCAB_SIZE = 257
ENGINES = ("gigatoken", "fastokens", "tokenizers")


@dataclass(frozen=True)
class BuildSettings:
    """How text becomes shards; with the inputs and the tokenizer, this alone decides every byte of a dataset.

    Raises: ConfigError for a value that cannot work.
    """

    chunk_length: int = 2048
    text_column: str = "text"
    shard_bytes: int = 256 * MIB

    def __post_init__(self) -> None:
        if self.chunk_length < 1:
            raise ConfigError(f"--chunk-length is {self.chunk_length}: at least 1 token per chunk is wanted")
        if self.shard_bytes < 1:
            raise ConfigError("--shard-megabytes is too small: a shard of at least 1 byte of text is wanted")
        if not self.text_column:
            raise ConfigError("--text-column is empty: the name of the column that holds the text is wanted")


@dataclass(frozen=True)
class TokenizerSettings:
    """Where the tokenizer comes from: the file at `path`, or training on the input when there is none.

    A `vocab_size` of None takes what is there: an existing tokenizer as it is, a new one with `DEFAULT_VOCAB_SIZE`.

    Raises: ConfigError for a value that cannot work.
    """

    path: str | None = None
    end_of_document: str | None = None
    vocab_size: int | None = None
    sample_bytes: int = 64 * MIB

    def __post_init__(self) -> None:
        if self.vocab_size is not None and self.vocab_size < MIN_VOCAB_SIZE:
            wanted = f"at least {MIN_VOCAB_SIZE} (every byte and the end of a document) is wanted"
            raise ConfigError(f"--vocab-size is {self.vocab_size:,}: {wanted}")
        if self.sample_bytes < 1:
            raise ConfigError("--sample-megabytes is too small: at least 1 byte of text to train on is wanted")


@dataclass(frozen=True)
class EngineSettings:
    """How text is encoded; nothing here changes a byte of the dataset.

    `engine` is the first to be tried (None: the fastest), `verify` what is compared with a second engine: a "sample" of
    every shard or the "full" text; `num_threads` is for this process (None: all cores).

    Raises: ConfigError for a value that cannot work.
    """

    engine: str | None = None
    verify: str = "sample"
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
