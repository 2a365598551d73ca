import json

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from preprocess.encode import ReferenceEngine
from preprocess.parity import OddTexts
from preprocess.spelling import byte_lengths, letters_of_entries, spelled_bytes
from preprocess.tokenizer import make_tokenizer
from tests.conftest import SHARED_DATA, has_shared_data


def lengths_of(raw):
    """What the bytes behind the ids of this tokenizer.json are found to be."""
    odd = OddTexts(ReferenceEngine(make_tokenizer(raw, "test", "<|endoftext|>").tokenizer), [])
    return byte_lengths(json.loads(raw), odd.texts, odd.encoded)


def changed(tokenizer_path, change):
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    change(tokenizer)
    return tokenizer.to_str().encode()


def test_the_ids_of_a_byte_level_tokenizer_spell_every_text(tokenizer_path, real_texts):
    raw = tokenizer_path.read_bytes()
    lengths, engine = lengths_of(raw), ReferenceEngine(make_tokenizer(raw, "test", None).tokenizer)
    for text in real_texts[:100]:
        ids, _ = engine.encode(pa.array([text], pa.large_string()))
        assert spelled_bytes(lengths, ids) == len(text.encode())


@pytest.mark.parametrize(
    ("name", "spells"), [("gpt2", True), ("cl100k_base", True), ("o200k_base", True), ("qwen3", False)]
)
def test_known_tokenizers_spell_unless_they_normalize(name, spells):
    if not has_shared_data():
        pytest.skip("no shared data")
    raw = (SHARED_DATA / f"tokenizers/{name}/tokenizer.json").read_bytes()
    assert (lengths_of(raw) is not None) == spells


def nfc(tokenizer):
    tokenizer.normalizer = normalizers.NFC()


def prefix_space(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def removes_blanks(tokenizer):
    steps = [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)


@pytest.mark.parametrize("change", [nfc, prefix_space, removes_blanks])
def test_a_tokenizer_that_changes_text_does_not_spell_it(tokenizer_path, change):
    assert lengths_of(changed(tokenizer_path, change)) is None


def test_a_vocabulary_of_words_does_not_spell():
    tokenizer = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "[UNK]": 1, "a": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.ByteLevel()
    assert lengths_of(tokenizer.to_str().encode()) is None


def test_entries_added_tokens_and_holes_have_their_lengths():
    document = {
        "model": {"vocab": {"a": 0, "\u0120the": 3}},
        "added_tokens": [{"id": 5, "content": "\u6d77<|", "special": False}],
    }
    assert letters_of_entries(document).tolist() == [1, 0, 0, 4, 0, 5]
    document["model"] = {"type": "Unigram", "vocab": [["a", 0.0], ["bc", -1.0]]}
    assert letters_of_entries(document).tolist() == [1, 2, 0, 0, 0, 5]


def test_no_ids_spell_nothing():
    assert spelled_bytes(np.array([1], np.uint16), np.zeros(0, np.uint32)) == 0
