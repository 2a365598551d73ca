"""Both trainers give the same bytes, on anything; special tokens are never given by text; the result is usable."""

import json
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from preprocess import fast_trainer, trainer
from preprocess.choose import KINDS
from preprocess.config import TrainerSettings
from preprocess.encode import EngineError, ReferenceEngine, unequal_texts
from preprocess.engines import ordinary
from preprocess.parity import odd_texts
from preprocess.remember import cache_directory
from preprocess.tokenizer import make_tokenizer
from shared.errors import ConfigError, StorageError, UserError

END = "<|endoftext|>"
SPECIALS = (END, "<|im_start|>", "<|im_end|>", "<\uff5cuser\uff5c>")
BLANKS = "\n\x0b\x0c\r"


def strings(*batches):
    return [pa.array(batch, pa.large_string()) for batch in batches]


def silent(line):
    pass


def fast(texts, settings):
    merges = fast_trainer.learn(texts, settings.vocab_size, trainer.MIN_FREQUENCY)
    return trainer.tokenizer_file(merges, settings)


# the fast trainer


@pytest.mark.parametrize("vocab_size", [257, 300, 2048, 4000, 100_000])  # of the last there is not enough text
def test_the_fast_trainer_gives_the_bytes_of_the_reference(real_texts, vocab_size):
    pytest.importorskip("gigabpe")
    texts = strings([*real_texts, *real_texts[:50]], [], ["", "\u6d77\u306f<|endoftext|>\x00\n\n  a", "b \n"])
    settings = TrainerSettings(vocab_size)
    assert fast(texts, settings) == trainer.train_reference(texts, settings)
    assert len(json.loads(fast(texts, settings))["model"]["vocab"]) == min(vocab_size, 100_000) or vocab_size == 100_000


@pytest.mark.parametrize("batches", [[], [[]], [[""]], [["a"]], [["ab"]], [["ab", "ab"]], [["aaaa" * 99]]])
def test_both_trainers_learn_the_same_of_next_to_nothing(batches):
    pytest.importorskip("gigabpe")
    texts, settings = strings(*batches), TrainerSettings(300)
    assert fast(texts, settings) == trainer.train_reference(texts, settings)


@pytest.mark.parametrize("blanks", ["\n", "\n\r", "\x0b", "\n\x0b", "\n\x0b\x0c", "\x0c\r\n"])
def test_whichever_blanks_a_text_has_newlines_do_not_end_it(real_texts, blanks):
    pytest.importorskip("gigabpe")
    odd = [f"a{one}{two}{three}b{one}" for one in blanks for two in f" {blanks}" for three in f" {blanks}"]
    texts, settings = strings(real_texts[:50], odd * 3, [f"{blanks}{blanks}  {blanks}"] * 2), TrainerSettings(2000)
    assert fast(texts, settings) == trainer.train_reference(texts, settings)


@given(
    st.lists(st.text(st.sampled_from("ab1!' \n\r\t\x0b\u00e9\u6d77\u3000"), max_size=12), max_size=8),
    st.integers(1, 3),
    st.integers(257, 290),
)
def test_both_trainers_learn_the_same_of_any_text(texts, times, vocab_size):
    """Few letters, so that ties are many."""
    pytest.importorskip("gigabpe")
    arrays, settings = strings(texts * times, texts[:2]), TrainerSettings(vocab_size)
    assert fast(arrays, settings) == trainer.train_reference(arrays, settings)


def test_a_slice_of_an_array_is_written_as_itself(real_texts):
    pytest.importorskip("gigabpe")
    whole = pa.array(real_texts[:60], pa.large_string())
    settings = TrainerSettings(500)
    sliced, copied = [whole.slice(7, 20), whole.slice(40)], strings(real_texts[7:27], real_texts[40:60])
    assert fast(sliced, settings) == trainer.train_reference(copied, settings)


def test_the_fast_trainer_does_not_write_to_the_terminal(real_texts, capfd):
    pytest.importorskip("gigabpe")
    fast(strings(real_texts[:50]), TrainerSettings(300))
    assert capfd.readouterr() == ("", "")


def test_every_code_point_is_in_a_probe_or_in_a_run_of_its_like():
    texts = fast_trainer.probe_texts()
    singles = {text[1] for text in texts if len(text) == 6 and text[2:5] == "1 !"}
    assert {"A", "7", "\u0301", "\u3000", "\u1c89", "\u088f", "\U0001f30a", "\u4e00", "\uac00", "\U0010ffff"} <= singles
    assert all(texts.count(text) % 2 == 0 for text in texts[:500])


@pytest.mark.slow
def test_both_trainers_cut_every_code_point_alike():
    """64 at a time in the large blocks, of which the probe has looked at two in 64; up to the last ideographs."""
    pytest.importorskip("gigabpe")
    starts = [*range(0x3400, 0xD800, 64), *range(0x17000, 0x18D00, 64), *range(0x20000, 0x33500, 64)]
    runs = ["".join(map(chr, range(start, start + 64))) for start in starts]
    assert trainer.learns_alike(strings([f"!{run}x{run}1" for run in runs] * 2))


# which trainer trains


def test_the_fast_trainer_is_compared_once_and_named(real_texts):
    pytest.importorskip("gigabpe")
    texts, settings, said = strings(real_texts[:50]), TrainerSettings(500, SPECIALS), []
    for _ in range(2):
        assert trainer.train(texts, settings, said.append) == trainer.train_reference(texts, settings)
    assert said[-1].startswith("training with gigabpe ")
    assert len([line for line in said if line.startswith("comparing gigabpe")]) <= 1
    assert [path.name for path in cache_directory().iterdir() if path.name.startswith("trainer-")]


@pytest.mark.parametrize(
    ("texts", "pre_tokenizer", "reason"),
    [
        (["the cat"] * 9, "llama3", "gigabpe cuts text as gpt2 does, not as llama3 does"),
        ([f"the{BLANKS}cat"] * 9, "gpt2", "the text has every blank that could stand for a newline"),
    ],
)
def test_where_the_fast_trainer_cannot_the_reference_trains_and_says_why(texts, pre_tokenizer, reason):
    pytest.importorskip("gigabpe")
    settings, said = TrainerSettings(280, pre_tokenizer=pre_tokenizer), []
    raw = trainer.train(strings(texts), settings, said.append)
    assert raw == trainer.train_reference(strings(texts), settings)
    assert said[-1].startswith("training with tokenizers ")
    assert said[-1].endswith(reason)


def test_without_the_fast_trainer_the_bytes_are_the_same(real_texts, monkeypatch):
    texts, settings, said = strings(real_texts[:50]), TrainerSettings(500), []
    usual = trainer.train(texts, settings, silent)
    monkeypatch.setitem(sys.modules, "gigabpe", None)
    assert trainer.train(texts, settings, said.append) == usual
    assert said[0].endswith("which is slower: gigabpe is not installed (pip install 'argonne[fast]')")


def test_a_fast_trainer_that_learns_otherwise_is_not_used(real_texts, monkeypatch, tmp_path):
    gigabpe = pytest.importorskip("gigabpe")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fast_trainer, "probe_texts", lambda: real_texts[:9])
    right = gigabpe.train_bpe
    monkeypatch.setattr(gigabpe, "train_bpe", lambda *args, **options: ({}, right(*args, **options)[1][::-1]))
    texts, settings, said = strings(real_texts[:50]), TrainerSettings(500), []
    assert trainer.train(texts, settings, said.append) == trainer.train_reference(texts, settings)
    assert "learns other merges from some code points or odd texts" in said[-1]


def test_a_fast_trainer_that_fails_is_not_used(real_texts, monkeypatch):
    gigabpe = pytest.importorskip("gigabpe")
    texts, settings, said = strings(real_texts[:50]), TrainerSettings(500), []
    usual = trainer.train(texts, settings, silent)

    def fail(*args, **options):
        raise ValueError("out of luck")

    monkeypatch.setattr(gigabpe, "train_bpe", fail)
    assert trainer.train(texts, settings, said.append) == usual
    assert said[-1].endswith("gigabpe failed (ValueError: out of luck)")


def test_a_sample_that_finds_no_room_is_one_line(monkeypatch, tmp_path):
    pytest.importorskip("gigabpe")
    monkeypatch.setattr(fast_trainer, "_write", _no_room)
    with pytest.raises(
        UserError, match=r"^the sample is too large: \S+ cannot be written; or name a TMPDIR with room$"
    ):
        fast_trainer.learn(strings(["a"]), 300, 2)


def _no_room(path, texts):
    raise StorageError(f"{path} cannot be written")


# what is learned


@pytest.mark.parametrize("pre_tokenizer", ["gpt2", "llama3"])
def test_the_special_tokens_come_first_in_the_order_given_and_count(real_texts, pre_tokenizer):
    raw = trainer.train(strings(real_texts[:50]), TrainerSettings(500, SPECIALS, pre_tokenizer), silent)
    tokenizer = Tokenizer.from_str(raw.decode())
    assert [tokenizer.id_to_token(number) for number in range(5)] == [*SPECIALS, "!"]
    assert tokenizer.get_vocab_size() == 500
    added = tokenizer.get_added_tokens_decoder()
    assert {number: token.content for number, token in added.items() if token.special} == dict(enumerate(SPECIALS))
    fewer = trainer.train(strings(real_texts[:50]), TrainerSettings(500, SPECIALS[:1], pre_tokenizer), silent)
    assert len(json.loads(fewer)["model"]["merges"]) == len(json.loads(raw)["model"]["merges"]) + 3


@pytest.mark.parametrize("pre_tokenizer", ["gpt2", "llama3"])
def test_text_that_spells_a_special_token_is_text_even_if_it_is_frequent(pre_tokenizer):
    text = " ".join(SPECIALS)
    raw = trainer.train(strings([text] * 99), TrainerSettings(600, SPECIALS, pre_tokenizer), silent)
    tokenizer = make_tokenizer(raw, "t.json", END).tokenizer
    ids = tokenizer.encode(text).ids
    assert min(ids) >= len(SPECIALS)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("pre_tokenizer", ["gpt2", "llama3"])
@pytest.mark.parametrize(
    "token", ["a", "the", "PAD", "123", "!!", "\u0120the", "\u00e9", "<\u00c3>", "\u0100", "[MASK"]
)
def test_a_special_token_that_could_be_learned_is_refused(token, pre_tokenizer):
    if token == "123" and pre_tokenizer == "llama3":
        token = "12"
    if token == "[MASK" and pre_tokenizer == "gpt2":
        token = "<<"
    message = "special token .* could be learned from text too: name it like <|name|>"
    with pytest.raises(ConfigError, match=message.replace("|", r"\|")):
        trainer.train(strings(["a"]), TrainerSettings(300, (END, token), pre_tokenizer), silent)


@pytest.mark.parametrize("token", ["<s>", "</s>", "[PAD]", "<|a b|>", "<\uff5cend\u2581of\uff5c>", "\u6d77", "<0x0A>"])
def test_a_special_token_that_no_merge_makes_is_taken(token):
    raw = trainer.train(strings([f"{token}{token} {token}"] * 50), TrainerSettings(400, (token,)), silent)
    tokenizer = make_tokenizer(raw, "t.json", token).tokenizer
    assert 0 not in tokenizer.encode(f"a{token} {token}").ids


def test_training_is_deterministic_and_round_trips_any_byte(real_texts):
    texts = strings(real_texts[:100])
    raw = trainer.train(texts, TrainerSettings(600), silent)
    assert raw == trainer.train(texts, TrainerSettings(600), silent)
    tokenizer = Tokenizer.from_str(raw.decode())
    text = "".join(map(chr, range(256))) + "\U0001f30a \u6d77"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize("pre_tokenizer", ["gpt2", "llama3"])
def test_the_fast_engines_take_the_tokenizer_and_give_the_ids_of_the_reference(real_texts, pre_tokenizer):
    pytest.importorskip("gigatoken")
    pytest.importorskip("fastokens")
    raw = trainer.train(strings(real_texts), TrainerSettings(3000, SPECIALS, pre_tokenizer), silent)
    (texts,) = strings([*real_texts, *odd_texts(SPECIALS), " ".join(SPECIALS)])
    wanted = ReferenceEngine(make_tokenizer(raw, "t.json", END).tokenizer).encode(texts)
    for kind in KINDS:
        assert kind.refusal(ordinary(json.loads(raw))) is None
        assert len(unequal_texts(kind(ordinary(json.loads(raw))).encode(texts), wanted)) == 0


@pytest.mark.parametrize("pre_tokenizer", ["gpt2", "llama3"])
def test_transformers_loads_the_tokenizer_and_gives_its_ids(real_texts, pre_tokenizer, tmp_path):
    """It makes special tokens of text that spells them, unless it is told to split them."""
    transformers = pytest.importorskip("transformers")
    raw = trainer.train(strings(real_texts), TrainerSettings(2000, SPECIALS, pre_tokenizer), silent)
    (tmp_path / "tokenizer.json").write_bytes(raw)
    ours = make_tokenizer(raw, "t.json", END).tokenizer
    path = str(tmp_path / "tokenizer.json")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=path, eos_token=END, split_special_tokens=True)
    assert (theirs.eos_token, theirs.eos_token_id, len(theirs)) == (END, 0, 2000)
    for text in [*real_texts[:100], *odd_texts(SPECIALS)]:
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text, add_special_tokens=False).ids
        assert theirs.decode(ids) == text
    usual = transformers.PreTrainedTokenizerFast(tokenizer_file=path, eos_token=END)
    assert usual("a<|im_start|>b")["input_ids"] == [*ours.encode("a").ids, 1, *ours.encode("b").ids]
    assert usual.decode([*ours.encode("a").ids, 0]) == f"a{END}"
    assert usual.decode([*ours.encode("a").ids, 0, 1], skip_special_tokens=True) == "a"


def test_an_engine_error_is_what_a_missing_trainer_raises(monkeypatch):
    monkeypatch.setitem(sys.modules, "gigabpe", None)
    with pytest.raises(EngineError, match="gigabpe is not installed"):
        fast_trainer.label()
