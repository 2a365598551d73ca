"""What the tests of the trainer share: a dataset written by hand, a recipe and a model of a few thousand weights."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from shared.arrays import write_array
from shared.config import structure, unstructure
from shared.format import (
    FORMAT,
    OFFSET_DTYPE,
    TOKEN_DTYPES,
    TOKENIZER_NAME,
    VERSION,
    Index,
    Shard,
    Source,
    TokenizerIdentity,
    documents_path,
    num_chunks,
    read_index,
    stored_size,
    token_dtype,
    tokens_path,
    write_index,
)
from train.architecture import ArgonneConfig
from train.config import RunConfig
from train.model import ArgonneModel
from train.recovery import StopRequest
from train.signals import Signals

torch.set_num_threads(1)  # the tests share two cores, and their matrices are small

MODEL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
RECIPE = {
    "model": MODEL,
    "data": {"sequence_length": 16, "global_batch": 4, "validation_chunks": 4},
    "optimizer": {"learning_rate": 1e-2, "min_learning_rate": 1e-3, "warmup_steps": 2},
    "training": {"total_steps": 4, "microbatch": 2},
}


def recipe(**changes: Any) -> RunConfig:
    """A small recipe; a change is named section__field, or strategy."""
    tables: dict[str, Any] = {name: dict(table) for name, table in RECIPE.items()}
    for name, value in changes.items():
        section, _, field = name.partition("__")
        if field:
            tables.setdefault(section, {})[field] = value
        else:
            tables[section] = value
    return structure(tables, RunConfig, "recipe")


def plain(config: RunConfig) -> dict[str, Any]:
    """The recipe as it stands in a manifest."""
    return unstructure(config)


def architecture(**changes: Any) -> ArgonneConfig:
    """A small architecture."""
    return ArgonneConfig(**{**MODEL, **changes})


def lively_model(config: ArgonneConfig, seed: int = 0) -> ArgonneModel:
    """A model in evaluation mode whose weights are so large that every part of it is seen in its logits."""
    model = ArgonneModel(config)
    model.initialize(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.3, generator=generator))
    return model.eval()


def some_ids(batch: int = 2, length: int = 12, vocab: int = 64, seed: int = 0) -> torch.Tensor:
    """(batch, length) random ids."""
    return torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def write_tokens(
    directory: Path,
    shards: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    end: int = 0,
    length: int = 16,
    rows: Sequence[Sequence[int]] | None = None,
) -> Index:
    """A finished dataset that holds these ids; its tokenizer.json is any file.

    `rows` are the sizes of each shard's input rows, end-of-document ids included; without it, a shard is one row.
    """
    directory.mkdir(parents=True, exist_ok=True)
    dtype = token_dtype(vocab_size)
    (directory / TOKENIZER_NAME).write_text("{}")
    rows = [[len(tokens)] for tokens in shards] if rows is None else rows
    documents = []
    for number, (tokens, sizes) in enumerate(zip(shards, rows, strict=True)):
        ids = np.full(stored_size(len(tokens), length), end, TOKEN_DTYPES[dtype])
        ids[: len(tokens)] = tokens
        np.save(tokens_path(directory, number), ids)
        documents.append(write_array(documents_path(directory, number), np.cumsum([0, *sizes], dtype=OFFSET_DTYPE)))
    index = Index(
        format=FORMAT,
        version=VERSION,
        chunk_length=length,
        dtype=dtype,
        text_column="text",
        shard_bytes=1 << 20,
        tokenizer=TokenizerIdentity(hashlib.sha256(b"{}").hexdigest(), vocab_size, "<|end|>", end, []),
        sources=[Source("a.parquet", 1000, sum(map(len, rows)), "bb")],
        shards=[_shard(number, rows, length, documents[number]) for number in range(len(rows))],
    )
    write_index(directory, index)
    return read_index(directory)


def _shard(number: int, rows: Sequence[Sequence[int]], length: int, documents_sha256: str) -> Shard:
    sizes = rows[number]
    num_tokens = sum(sizes)
    return Shard(
        source=0,
        first_row_group=number,
        num_row_groups=1,
        first_row=sum(map(len, rows[:number])),
        num_rows=len(sizes),
        num_documents=sum(size > 0 for size in sizes),
        num_null=0,
        num_empty=sum(size == 0 for size in sizes),
        text_bytes=num_tokens,
        num_tokens=num_tokens,
        num_chunks=num_chunks(num_tokens, length),
        num_padding=stored_size(num_tokens, length) - num_tokens,
        tokens_sha256="00",
        documents_sha256=documents_sha256,
    )


def write_documents(
    directory: Path, shards: Sequence[Sequence[int]], *, vocab_size: int = 60_001, end: int = 60_000, first: int = 0
) -> Index:
    """A dataset with documents of these sizes, end-of-document ids included; a size of 0 is an empty row.

    Ids count up from `first` over all shards, but for those that end a document.
    """
    tokens, count = [], first
    for sizes in shards:
        ids: list[int] = []
        for size in sizes:
            ids += [(count + i) % end for i in range(size - 1)] + [end] * (size > 0)
            count += max(size - 1, 0)
        tokens.append(ids)
    return write_tokens(directory, tokens, vocab_size=vocab_size, end=end, rows=shards)


def random_tokens(num_tokens: int, vocab_size: int = 64, seed: int = 0) -> list[int]:
    """Ids of one shard, uneven enough that a model can learn something."""
    drawn = np.random.default_rng(seed).geometric(0.15, num_tokens)
    return np.minimum(drawn, vocab_size - 1).tolist()


def unasked() -> StopRequest:
    """Of a run that nobody asks to stop: signals stay this process's own."""
    signals = Signals.__new__(Signals)
    signals.received, signals.parent = [], os.getppid()
    return StopRequest(signals)


@contextmanager
def group_of_one() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
