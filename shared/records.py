"""What the index of a dataset says of input files, shards and the tokenizer: plain records of numbers and strings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """An input file: `path` relative to the input directory, `identity` a sha256 of its footer or of all of it."""

    path: str
    size_bytes: int
    num_rows: int
    identity: str


@dataclass(frozen=True)
class SkippedSource:
    """An input file that could not be read and was left out whole, by choice, and why."""

    path: str
    size_bytes: int
    reason: str


@dataclass(frozen=True)
class Selection:
    """Which rows of the inputs are documents of a dataset; by default all that have a text.

    `where` is a condition on the columns of a row. Of exact duplicates only the first may be kept. A share of the
    texts, drawn by their hash, may be kept apart for validation: the "validation" split has these, "train" the others.
    """

    where: str | None = None
    drop_duplicates: bool = False
    validation_share: float = 0.0
    split: str = "train"


@dataclass(frozen=True)
class Shard:
    """What one shard holds. `source` counts into the index's sources; rows count within that source.

    A row is a document, null, empty, filtered out, a duplicate, of the other split, or skipped with its whole source:
    num_rows is their sum. Of the `read_bytes` of text, `text_bytes` are behind tokens, `rejected_bytes` left out.
    """

    source: int
    first_row_group: int
    num_row_groups: int
    first_row: int
    num_rows: int
    num_documents: int
    num_null: int
    num_empty: int
    text_bytes: int
    num_tokens: int
    num_chunks: int
    num_padding: int
    tokens_sha256: str
    documents_sha256: str
    num_filtered: int = 0
    num_duplicate: int = 0
    num_other_split: int = 0
    num_skipped: int = 0
    read_bytes: int = 0
    rejected_bytes: int = 0


@dataclass(frozen=True)
class GoldenVector:
    """A text and the ids that the dataset's tokenizer gives for it."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class TokenizerIdentity:
    """Which tokenizer made the ids; `vocab_size` is the highest id it can give + 1, not its number of entries."""

    sha256: str
    vocab_size: int
    end_of_document: str
    end_of_document_id: int
    golden: list[GoldenVector]
