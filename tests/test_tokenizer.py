import json
import re

import pytest
from tokenizers import Tokenizer

from preprocess import trainer
from preprocess.build import build
from preprocess.config import BuildSettings, TokenizerSettings, TrainerSettings
from preprocess.sampling import open_sample
from preprocess.tokenizer import GOLDEN_TEXTS, golden_vectors, load_tokenizer, make_tokenizer
from shared.errors import ConfigError, InputError
from shared.format import read_index
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
    texts = [vector.text for vector in loaded.identity.golden]
    assert texts == [*GOLDEN_TEXTS, "a<|endoftext|>b"]
    assert [
        loaded.tokenizer.decode(vector.ids, skip_special_tokens=False) for vector in loaded.identity.golden
    ] == texts
    other = trainer.train(open_sample(str(small_input), "text", 1 << 20), TrainerSettings(300), lambda line: None)
    assert golden_vectors(Tokenizer.from_str(other.decode()), texts) != loaded.identity.golden


def test_golden_vectors_spell_the_special_tokens_of_the_tokenizer_as_text(small_input):
    specials = ("<eos>", *(f"<|{number}|>" for number in range(20)))
    raw = trainer.train(
        open_sample(str(small_input), "text", 1 << 20), TrainerSettings(300, specials), lambda line: None
    )
    identity = make_tokenizer(raw, "t.json", "<eos>").identity
    spelled = identity.golden[-1]
    assert spelled.text == f"a{' '.join(specials[:16])}b"
    assert min(spelled.ids) >= len(specials)


def test_the_command_trains_a_tokenizer_once_and_says_when_the_text_is_too_little(tmp_path, small_input):
    options = ("--vocab-size", 1_000_000, "--end-of-document", "<eos>", "--special-tokens", "<|a|>", "<|b|>")
    done = run_cli("preprocess", "tokenizer", small_input, tmp_path / "t.json", *options)
    assert done.returncode == 0, done.stderr
    assert "the text is too little for 1,000,000 entries" in done.stdout
    loaded = load_tokenizer(tmp_path / "t.json", None)
    assert loaded.identity.vocab_size > 1000
    assert [loaded.tokenizer.id_to_token(number) for number in range(4)] == ["<eos>", "<|a|>", "<|b|>", "!"]
    entries = f"{loaded.identity.vocab_size:,} entries"
    assert re.search(rf"t.json: {entries}, [1-9]\.\d\d bytes per token on \S+ MB .*, \S+ ids unused", done.stdout)
    again = run_cli("preprocess", "tokenizer", small_input, tmp_path / "t.json")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "exists: name a file that does not" in again.stderr


def test_a_dataset_with_a_tokenizer_of_its_own_names_its_special_tokens(tmp_path, small_input):
    options = ("--vocab-size", 600, "--pre-tokenizer", "llama3", "--special-tokens", "<|im_start|>", "<|im_end|>")
    options += ("--end-of-document", "<eos>", "--engine", "tokenizers")
    command = ("preprocess", "tokenize", small_input, tmp_path / "out", *options)
    done = run_cli(*command)
    assert done.returncode == 0, done.stderr
    index = read_index(tmp_path / "out")
    assert (index.tokenizer.end_of_document, index.tokenizer.end_of_document_id) == ("<eos>", 0)
    assert index.tokenizer.golden[-1].text == "a<eos> <|im_start|> <|im_end|>b"
    raw = (tmp_path / "out/tokenizer.json").read_bytes()
    assert trainer.is_cut_by(raw, "llama3")
    assert not trainer.is_cut_by(raw, "gpt2")
    assert "is complete: nothing to do" in run_cli(*command).stdout


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"special_tokens": ("<|im_start|>",)},
            r"special tokens: <\|im_start\|> is wanted .*: leave --special-tokens out",
        ),
        (
            {"pre_tokenizer": "llama3"},
            "pre-tokenizer: llama3 is wanted and another is there: leave --pre-tokenizer out",
        ),
        ({"vocab_size": 600}, "vocabulary: found 2,048, wanted 600: leave --vocab-size out"),
    ],
)
def test_a_tokenizer_that_is_there_and_is_not_the_one_asked_for_is_refused(small_tokens, small_input, option, message):
    with pytest.raises(ConfigError, match=f"was built otherwise: {message}, or name another directory"):
        build(str(small_input), small_tokens, BuildSettings(64, "text", 100_000), TokenizerSettings(**option))
    same = TokenizerSettings(pre_tokenizer="gpt2", end_of_document="<|endoftext|>", vocab_size=2048)
    assert build(str(small_input), small_tokens, BuildSettings(64, "text", 100_000), same)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"vocab_size": 256}, r"--vocab-size is 256: at least 257 \(256 bytes and 1 special token\) is wanted"),
        ({"vocab_size": 258, "special_tokens": ("<|a|>", "<|b|>")}, r"at least 259 \(256 bytes and 3 special tokens\)"),
        ({"special_tokens": ("",)}, "special token '' is blank or not printable: name it like"),
        ({"special_tokens": (" ",)}, "special token ' ' is blank or not printable"),
        ({"special_tokens": ("<\x1b[2J>",)}, r"special token '<\\x1b\[2J>' is blank or not printable"),
        ({"special_tokens": ("<|a|>", "<|a|>")}, r"special token '<\|a\|>' is named twice: name it once"),
        ({"special_tokens": ("<|endoftext|>",)}, "is named twice, which is the end-of-document token: name it once"),
        ({"special_tokens": ("<e>",), "end_of_document": "<e>"}, "'<e>' is named twice, which is the end-of-document"),
        ({"end_of_document": ""}, "special token '' is blank or not printable"),
        ({"pre_tokenizer": "gpt5"}, "--pre-tokenizer is 'gpt5': one of gpt2, llama3 is wanted"),
        ({"path": "t.json", "special_tokens": ("<|a|>",)}, "--special-tokens is for a tokenizer to be trained"),
        ({"path": "t.json", "pre_tokenizer": "gpt2"}, "--pre-tokenizer is for a tokenizer to be trained"),
        ({"sample_bytes": 0}, "--sample-megabytes is too small"),
    ],
)
def test_settings_that_cannot_work_are_refused(option, message):
    with pytest.raises(ConfigError, match=message):
        TokenizerSettings(**option)
