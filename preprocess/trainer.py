"""Byte-level BPE with the GPT-2 regex, learned from text: the same tokenizer.json from either of two trainers.

`tokenizers` defines what is right. gigatoken's trainer learns the same merges several times as fast, but it does not
know a least frequency and cuts text by newer Unicode tables; where that could matter its result is not used.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from preprocess.encode import EngineError
from preprocess.engines import Document, GigatokenEngine, byte_letters, import_optional, ordinary
from preprocess.parity import unlike_code_points

MIN_FREQUENCY = 2  # a pair seen once is no pattern
BYTES_PER_ENTRY = 200  # of text; with less, gigatoken spends minutes on pairs seen once
TOO_LITTLE = "the text is too little for that many entries"
Batches = Callable[[], Iterable[list[str]]]
Merges = list[tuple[str, str]]


def train(batches: Batches, vocab_size: int, special_token: str) -> bytes:
    """The contents of a tokenizer.json with at most `vocab_size` entries, trained on the texts of `batches`.

    The same texts give the same bytes, whichever trainer is there.
    """
    try:
        return _train_fast(batches(), vocab_size, special_token)
    except EngineError:
        return train_reference(batches(), vocab_size, special_token)


def train_reference(batches: Iterable[list[str]], vocab_size: int, special_token: str) -> bytes:
    """As `train`, by `tokenizers`."""
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=[special_token],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(batches, trainer)
    return tokenizer.to_str(pretty=False).encode()


def _train_fast(batches: Iterable[list[str]], vocab_size: int, special_token: str) -> bytes:
    """As `train`, by gigatoken.

    Raises: EngineError if it is not there or could give other merges than `tokenizers`.
    """
    gigatoken = import_optional("gigatoken")
    import_optional("awkward")
    empty = ordinary(_file([], special_token))
    unlike = unlike_code_points(GigatokenEngine, empty, lambda line: print(line, flush=True))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "sample.parquet"
        size_bytes = _write(path, batches, lambda texts: not len(unlike.texts_with(texts)))
        if size_bytes < vocab_size * BYTES_PER_ENTRY:
            raise EngineError(TOO_LITTLE)
        source = gigatoken.ParquetFileSource([str(path)])
        with _quiet():
            _, merges = gigatoken.train_bpe(source, vocab_size, [special_token])
        letters = byte_letters()
        raw = _file(
            [("".join(letters[byte] for byte in one), "".join(letters[byte] for byte in two)) for one, two in merges],
            special_token,
        )
        document = json.loads(raw)
        if len(document["model"]["vocab"]) != vocab_size or _last_frequency(path, document) < MIN_FREQUENCY:
            raise EngineError(TOO_LITTLE)
        return raw


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _file(merges: Merges, special_token: str) -> bytes:
    """The tokenizer.json with these merges, its ids laid out as `tokenizers` does: special, bytes by letter, merges."""
    entries = dict.fromkeys([special_token, *sorted(byte_letters()), *(one + two for one, two in merges)])
    tokenizer = _byte_level(models.BPE({entry: number for number, entry in enumerate(entries)}, merges))
    tokenizer.add_special_tokens([AddedToken(special_token, special=True, normalized=False)])
    return tokenizer.to_str(pretty=False).encode()


def _write(path: Path, batches: Iterable[list[str]], fits: Callable[[Any], bool]) -> int:
    """Write the texts as a parquet file, which is what gigatoken reads; their size in bytes."""
    size_bytes = 0
    with pq.ParquetWriter(path, pa.schema([("text", pa.large_string())]), compression="none") as writer:
        for batch in batches:
            texts = pa.array(batch, pa.large_string())
            if not fits(texts):
                raise EngineError("the text has code points that the trainers cut in different ways")
            writer.write_table(pa.table({"text": texts}))
            size_bytes += sum(len(text.encode()) for text in batch)
    return size_bytes


def _last_frequency(path: Path, document: Document) -> int:
    """How often the last merge is made in the text: at most as often as its trainer counted, and no merge is rarer."""
    engine, last = GigatokenEngine(ordinary(json.dumps(document).encode())), max(document["model"]["vocab"].values())
    found = 0
    for batch in pq.ParquetFile(path).iter_batches():
        found += int(np.count_nonzero(engine.encode(batch.column(0))[0] == last))
        if found >= MIN_FREQUENCY:
            break
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing reaches the terminal: the trainer prints from Rust, below Python's own streams."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept, nowhere = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, stream)
            os.close(descriptor)
        os.close(nowhere)
