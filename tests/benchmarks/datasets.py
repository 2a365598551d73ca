"""Synthetic datasets to read from, and one to look at."""

import os
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


LARGE_SHARDS, LARGE_TOKENS = 10_000, 100_000_000


def write_dataset(directory: Path, num_shards: int, tokens: int) -> None:
    """So many shards of `tokens` + 1 random ids each, in documents of about 800; every shard holds the same."""
    num_tokens = tokens + 1
    ids = np.random.default_rng(0).integers(0, 50257, stored_size(num_tokens, LENGTH), np.uint16)
    offsets = _offsets(num_tokens)
    shards = []
    for number in range(num_shards):
        np.save(tokens_path(directory, number), ids)
        checksum = write_array(documents_path(directory, number), offsets) if num_shards < 100 else ""
        shards.append(_shard(0, offsets, checksum))
    _write_index(directory, [Source("synthetic", 0, 1, "")], shards)


def write_large(directory: Path) -> None:
    """10^12 tokens in 10,000 shards, each of an input file of its own: where documents begin, but no ids."""
    offsets = _offsets(LARGE_TOKENS)
    write_array(directory / "documents", offsets)
    for number in range(LARGE_SHARDS):
        os.link(directory / "documents", documents_path(directory, number))
    sources = [Source(f"{number:05d}.parquet", 1, len(offsets) - 1, "") for number in range(LARGE_SHARDS)]
    _write_index(directory, sources, [_shard(number, offsets, "") for number in range(LARGE_SHARDS)])


def _offsets(num_tokens: int) -> np.ndarray:
    """Where documents of about 800 ids begin, and where the last ends."""
    bounds = np.cumsum([0, *document_sizes(max(num_tokens // 800, 2), seed=0)]).astype(OFFSET_DTYPE)
    return np.append(bounds[bounds < num_tokens - 1], np.array([num_tokens], OFFSET_DTYPE))


def _shard(source: int, offsets: np.ndarray, checksum: str) -> Shard:
    num_rows, num_tokens = len(offsets) - 1, int(offsets[-1])
    rows = {"num_rows": num_rows, "num_documents": num_rows, "num_null": 0, "num_empty": 0, "text_bytes": num_tokens}
    sizes = {"num_tokens": num_tokens, "num_chunks": num_chunks(num_tokens, LENGTH), "num_padding": 0}
    return Shard(source, 0, 1, 0, **rows, **sizes, tokens_sha256="", documents_sha256=checksum)


def _write_index(directory: Path, sources: list[Source], shards: list[Shard]) -> None:
    tokenizer = TokenizerIdentity("", 50257, "<|endoftext|>", 50256, [])
    write_index(directory, Index(FORMAT, VERSION, LENGTH, "uint16", "text", 0, tokenizer, sources, shards))
