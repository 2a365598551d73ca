"""Shuffled batches of the chunk reader, against one bare gather of as many rows and its widening to int64."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from shared.format import FORMAT, VERSION, Index, Shard, Source, TokenizerIdentity, num_chunks, stored_size, tokens_path
from tests.benchmarks.measure import Comparison, compare
from train.config import DataConfig, RunConfig
from train.data import ChunkReader

LENGTH, NUM_CHUNKS, NUM_SHARDS, BATCH, BATCHES = 2048, 8192, 4, 8, 200


def measure() -> Comparison:
    """Sequences a second at length 2,048, page cache warm, one process."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        index = _synthetic_dataset(directory)
        flat = np.concatenate([np.load(tokens_path(directory, shard))[:-1] for shard in range(NUM_SHARDS)])
        rows, order = flat.reshape(-1, LENGTH), np.random.default_rng(0).permutation(NUM_CHUNKS * NUM_SHARDS)
        config = RunConfig(data=DataConfig(sequence_length=LENGTH, global_batch=BATCH))
        reader = ChunkReader(directory, index, config, 0, 1, torch.device("cpu"))

        def ours() -> None:
            for number in range(BATCHES):
                reader.fetch(number * BATCH)

        def bare() -> None:
            for number in range(BATCHES):
                rows[order[number * BATCH : (number + 1) * BATCH]].astype(np.int64)

        result = compare("read", "sequences/s", BATCH * BATCHES, ours, bare)
        reader.close()
        return result


def _synthetic_dataset(directory: Path) -> Index:
    num_tokens = NUM_CHUNKS * LENGTH + 1
    ids = np.random.default_rng(0).integers(0, 50257, stored_size(num_tokens, LENGTH)).astype("<u2")
    shards = []
    for number in range(NUM_SHARDS):
        np.save(tokens_path(directory, number), ids)
        counts = {"num_rows": 1, "num_documents": 1, "num_null": 0, "num_empty": 0, "text_bytes": num_tokens}
        sizes = {"num_tokens": num_tokens, "num_chunks": num_chunks(num_tokens, LENGTH), "num_padding": 0}
        shards.append(Shard(0, 0, 1, 0, **counts, **sizes, tokens_sha256="", documents_sha256=""))
    tokenizer = TokenizerIdentity("", 50257, "<|endoftext|>", 50256, [])
    sources = [Source("synthetic", 0, 1, "")]
    return Index(FORMAT, VERSION, LENGTH, "uint16", "text", 0, tokenizer, sources, shards)
