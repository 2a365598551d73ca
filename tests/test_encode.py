import time

import numpy as np
import pyarrow as pa
import pytest

from preprocess.encode import ReferenceEngine
from preprocess.tokenizer import load_tokenizer
from tests.helpers import read_column


@pytest.fixture(scope="module")
def engine(tokenizer_path):
    return ReferenceEngine(load_tokenizer(tokenizer_path, None).tokenizer)


def encode(engine, texts):
    ids, lengths = engine.encode(pa.array(texts, pa.large_string()))
    assert (ids.dtype, lengths.dtype, len(lengths)) == (np.uint32, np.int64, len(texts))
    return [piece.tolist() for piece in np.split(ids, np.cumsum(lengths))[:-1]]


def test_every_text_has_the_ids_it_has_alone(engine, tokenizer_path, real_texts):
    tokenizer = load_tokenizer(tokenizer_path, None).tokenizer
    texts = [*real_texts[:50], "", " ", "\x00"]
    assert encode(engine, texts) == [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def test_nothing_gives_nothing(engine):
    assert encode(engine, []) == []
    assert encode(engine, ["", ""]) == [[], []]


def test_text_that_spells_a_special_token_is_ordinary_text(engine, tokenizer_path):
    end = load_tokenizer(tokenizer_path, None).identity.end_of_document_id
    (ids,) = encode(engine, ["a <|endoftext|> b"])
    assert end not in ids


def test_text_that_spells_special_tokens_in_real_files_never_gives_one(engine, tokenizer_path, bad_data):
    end = load_tokenizer(tokenizer_path, None).identity.end_of_document_id
    assert not any(end in ids for ids in encode(engine, read_column(bad_data / "special_tokens.parquet")))


@pytest.mark.parametrize("text", ["a" * 300_000, "ab" * 150_000, " " * 300_000, "\n" * 300_000, "7" * 300_000])
def test_a_long_run_is_encoded_in_seconds(engine, text):
    started_s = time.monotonic()
    (ids,) = encode(engine, [text])
    assert len(ids) > 0
    assert time.monotonic() - started_s < 20
