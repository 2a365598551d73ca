"""Synthetic datasets to read from."""

from pathlib import Path

import numpy as np

from shared.arrays import write_array
from shared.format import (
    FORMAT,
    OFFSET_DTYPE,
    VERSION,
    Index,
    Shard,
    Source,
    TokenizerIdentity,
    documents_path,
    num_chunks,
    stored_size,
    tokens_path,
    write_index,
)
from tests.benchmarks.packing import document_sizes

LENGTH = 2048


def write_dataset(directory: Path, num_shards: int, tokens: int) -> None:
    """So many shards of `tokens` + 1 random ids each, in documents of about 800; every shard holds the same."""
    num_tokens = tokens + 1
    ids = np.random.default_rng(0).integers(0, 50257, stored_size(num_tokens, LENGTH), np.uint16)
    bounds = np.cumsum([0, *document_sizes(max(num_tokens // 800, 2), seed=0)]).astype(OFFSET_DTYPE)
    offsets = np.append(bounds[bounds < num_tokens - 1], np.array([num_tokens], OFFSET_DTYPE))
    rows = {"num_rows": len(offsets) - 1, "num_documents": len(offsets) - 1, "num_null": 0, "num_empty": 0}
    sizes = {"num_tokens": num_tokens, "num_chunks": num_chunks(num_tokens, LENGTH), "num_padding": 0}
    shards = []
    for number in range(num_shards):
        np.save(tokens_path(directory, number), ids)
        checksum = write_array(documents_path(directory, number), offsets) if num_shards < 100 else ""
        shards.append(
            Shard(0, 0, 1, 0, **rows, text_bytes=num_tokens, **sizes, tokens_sha256="", documents_sha256=checksum)
        )
    tokenizer = TokenizerIdentity("", 50257, "<|endoftext|>", 50256, [])
    write_index(
        directory,
        Index(FORMAT, VERSION, LENGTH, "uint16", "text", 0, tokenizer, [Source("synthetic", 0, 1, "")], shards),
    )
