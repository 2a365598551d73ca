"""Shuffled batches: plain chunks against one bare gather of as many rows, and packed ones against plain ones."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from preprocess.config import PackSettings
from preprocess.pack import pack
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
    read_index,
    stored_size,
    tokens_path,
    write_index,
)
from tests.benchmarks.measure import Comparison, compare
from tests.benchmarks.packing import document_sizes
from train.config import DataConfig, RunConfig
from train.data import ChunkReader
from train.views import open_view

LENGTH, NUM_CHUNKS, NUM_SHARDS, BATCH, BATCHES = 2048, 8192, 4, 8, 200


def measure() -> list[Comparison]:
    """Sequences a second at length 2,048, page cache warm, one process."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        _write_dataset(directory)
        pack(directory, PackSettings(LENGTH))
        flat = np.concatenate([np.load(tokens_path(directory, shard))[:-1] for shard in range(NUM_SHARDS)])
        rows, order = flat.reshape(-1, LENGTH), np.random.default_rng(0).permutation(NUM_CHUNKS * NUM_SHARDS)

        def bare() -> None:
            for number in range(BATCHES):
                rows[order[number * BATCH : (number + 1) * BATCH]].astype(np.int64)

        plain, packed = _reader(directory, None), _reader(directory, "best-fit")
        results = [
            compare("read", "sequences/s", BATCH * BATCHES, _reading(plain), bare),
            compare("read packed, against plain", "sequences/s", BATCH * BATCHES, _reading(packed), _reading(plain)),
        ]
        plain.close()
        packed.close()
        return results


def _reader(directory: Path, packing: str | None) -> ChunkReader:
    config = RunConfig(data=DataConfig(sequence_length=LENGTH, global_batch=BATCH, packing=packing))
    return ChunkReader(open_view(directory, read_index(directory), config), config, 0, 1, torch.device("cpu"))


def _reading(reader: ChunkReader) -> Callable[[], None]:
    def read() -> None:
        for number in range(BATCHES):
            reader.fetch(number * BATCH)

    return read


def _write_dataset(directory: Path) -> None:
    num_tokens = NUM_CHUNKS * LENGTH + 1
    ids = np.random.default_rng(0).integers(0, 50257, stored_size(num_tokens, LENGTH)).astype("<u2")
    bounds = np.cumsum([0, *document_sizes(num_tokens // 800, seed=0)]).astype(OFFSET_DTYPE)
    offsets = np.append(bounds[bounds < num_tokens - 1], np.array([num_tokens], OFFSET_DTYPE))
    rows = {"num_rows": len(offsets) - 1, "num_documents": len(offsets) - 1, "num_null": 0, "num_empty": 0}
    shards = []
    for number in range(NUM_SHARDS):
        np.save(tokens_path(directory, number), ids)
        checksum = write_array(documents_path(directory, number), offsets)
        sizes = {"num_tokens": num_tokens, "num_chunks": num_chunks(num_tokens, LENGTH), "num_padding": 0}
        shards.append(
            Shard(0, 0, 1, 0, **rows, text_bytes=num_tokens, **sizes, tokens_sha256="", documents_sha256=checksum)
        )
    tokenizer = TokenizerIdentity("", 50257, "<|endoftext|>", 50256, [])
    sources = [Source("synthetic", 0, 1, "")]
    write_index(directory, Index(FORMAT, VERSION, LENGTH, "uint16", "text", 0, tokenizer, sources, shards))
