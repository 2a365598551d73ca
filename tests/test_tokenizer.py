import json

import pytest
from tokenizers import Tokenizer

from preprocess import trainer
from preprocess.config import TokenizerSettings
from preprocess.encode import EngineError
from preprocess.sources import find_sources, read_footer
from preprocess.tokenizer import GOLDEN_TEXTS, golden_vectors, load_tokenizer, sample_texts, train_tokenizer
from shared.errors import ConfigError, InputError
from tests.helpers import run_cli


@pytest.fixture
def changed(tokenizer_path, tmp_path):
    """A function that writes the small tokenizer with something changed."""

    def write(change):
        document = json.loads(tokenizer_path.read_bytes())
        change(document)
        (tmp_path / "tokenizer.json").write_text(json.dumps(document))
        return tmp_path / "tokenizer.json"

    return write


def rename_end(document, name):
    document["added_tokens"][0]["content"] = name
    document["model"]["vocab"][name] = document["model"]["vocab"].pop("<|endoftext|>")


def footers_of(directory):
    root, files = find_sources(str(directory))
    return root, [read_footer(file, root, "text") for file in files]


def test_the_identity_names_the_bytes_the_vocabulary_and_the_end(tokenizer_path):
    loaded = load_tokenizer(tokenizer_path, None)
    assert loaded.raw == tokenizer_path.read_bytes()
    assert (loaded.identity.vocab_size, loaded.identity.end_of_document) == (2048, "<|endoftext|>")
    assert loaded.identity.end_of_document_id == loaded.tokenizer.token_to_id("<|endoftext|>")


def test_the_vocabulary_ends_behind_its_highest_id_though_it_has_holes(changed):
    def add(document):
        document["added_tokens"].append({**document["added_tokens"][0], "id": 5000, "content": "<|far|>"})
        document["model"]["vocab"]["<|far|>"] = 5000

    assert load_tokenizer(changed(add), None).identity.vocab_size == 5001


@pytest.mark.parametrize("name", ["<|end_of_text|>", "</s>", "<eos>", "<|eos|>"])
def test_a_well_known_end_of_document_token_is_found(changed, name):
    assert load_tokenizer(changed(lambda document: rename_end(document, name)), None).identity.end_of_document == name


def test_a_chat_marker_is_no_end_of_document_but_any_token_can_be_named(changed):
    path = changed(lambda document: rename_end(document, "<|im_end|>"))
    with pytest.raises(InputError, match=r"has no end-of-document token .*name one with --end-of-document TOKEN"):
        load_tokenizer(path, None)
    assert load_tokenizer(path, "<|im_end|>").identity.end_of_document == "<|im_end|>"
    with pytest.raises(InputError, match="has no token '<nope>': name one of its tokens with --end-of-document"):
        load_tokenizer(path, "<nope>")


def test_what_is_no_tokenizer_is_refused(tmp_path, changed):
    with pytest.raises(InputError, match=r"missing\.json cannot be read .*name a tokenizer\.json file"):
        load_tokenizer(tmp_path / "missing.json", None)
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match=r"other\.json is not a tokenizer\.json"):
        load_tokenizer(tmp_path / "other.json", None)
    with pytest.raises(InputError, match=r"has dropout 0\.1: ids would be random"):
        load_tokenizer(changed(lambda document: document["model"].update(dropout=0.1)), None)


def test_truncation_and_padding_of_the_file_are_not_applied(changed):
    def truncate(document):
        document["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}

    tokenizer = load_tokenizer(changed(truncate), None).tokenizer
    assert len(tokenizer.encode("a b c d e f g").ids) > 2


def test_golden_vectors_are_exact_and_tell_another_tokenizer(tokenizer_path, small_input):
    loaded = load_tokenizer(tokenizer_path, None)
    assert [vector.text for vector in loaded.identity.golden] == list(GOLDEN_TEXTS)
    assert [
        loaded.tokenizer.decode(vector.ids, skip_special_tokens=False) for vector in loaded.identity.golden
    ] == list(GOLDEN_TEXTS)
    other, _ = train_tokenizer(*footers_of(small_input), "text", 300, 1 << 20)
    assert golden_vectors(Tokenizer.from_str(other.decode())) != loaded.identity.golden


def test_training_is_deterministic_and_round_trips_any_byte(small_input):
    raw, size = train_tokenizer(*footers_of(small_input), "text", 600, 100_000)
    assert (raw, size) == train_tokenizer(*footers_of(small_input), "text", 600, 100_000)
    assert size == 600
    tokenizer = Tokenizer.from_str(raw.decode())
    text = "".join(map(chr, range(256))) + "\U0001f30a \u6d77"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("vocab_size", [257, 300, 2048, 4000])
def test_the_fast_trainer_gives_the_bytes_of_the_reference(real_texts, vocab_size):
    pytest.importorskip("gigatoken")
    texts = [*real_texts, *real_texts[:50], "", "\u6d77\u306f<|endoftext|>\x00\n\n  a"]
    fast = trainer._train_fast([texts[:90], texts[90:]], vocab_size, "<|endoftext|>")
    assert fast == trainer.train_reference([texts], vocab_size, "<|endoftext|>")


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["abcdefgh " * 2, "xyz"], trainer.TOO_LITTLE),  # gigatoken is not even tried
        (["x" * 60_000, "abcdefgh"], trainer.TOO_LITTLE),  # it runs out of merges
        (["the cat " * 99 + " \u088f"], "code points that the trainers cut in different ways"),
    ],
)
def test_the_fast_trainer_is_not_used_where_it_could_differ(texts, reason):
    pytest.importorskip("gigatoken")
    with pytest.raises(EngineError, match=reason):
        trainer._train_fast([texts], 280, "<|endoftext|>")
    expected = trainer.train_reference([texts], 280, "<|endoftext|>")
    assert trainer.train(lambda: [texts], 280, "<|endoftext|>") == expected


def test_the_fast_trainer_does_not_write_to_the_terminal(real_texts, capfd):
    pytest.importorskip("gigatoken")
    trainer._train_fast([real_texts], 300, "<|endoftext|>")
    assert capfd.readouterr() == ("", "")


def test_a_sample_is_all_of_a_small_input_and_spread_over_a_large_one(small_input, real_texts):
    root, footers = footers_of(small_input)
    everything = [text for batch in sample_texts(root, footers, "text", 1 << 30) for text in batch]
    assert everything == real_texts
    few = {text for batch in sample_texts(root, footers, "text", 100_000) for text in batch}
    assert 50_000 < sum(len(text.encode()) for text in few) < 500_000
    assert few & set(real_texts[:200])
    assert few <= set(real_texts)


def test_the_command_trains_a_tokenizer_once_and_says_when_the_text_is_too_little(tmp_path, small_input):
    done = run_cli("preprocess", "tokenizer", small_input, tmp_path / "t.json", "--vocab-size", 1_000_000)
    assert done.returncode == 0
    assert "the text is too little for 1,000,000 entries" in done.stdout
    assert load_tokenizer(tmp_path / "t.json", None).identity.vocab_size > 1000
    again = run_cli("preprocess", "tokenizer", small_input, tmp_path / "t.json")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "exists: name a file that does not" in again.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"vocab_size": 256}, "--vocab-size is 256: at least 257"),
        ({"sample_bytes": 0}, "--sample-megabytes is too small"),
    ],
)
def test_settings_that_cannot_work_are_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        TokenizerSettings(**option)
