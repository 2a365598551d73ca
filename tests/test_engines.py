"""The fast engines give the ids of `tokenizers`, on everything; what they are known to get wrong is refused."""

import json
import sys

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from preprocess.check import ShardCheck
from preprocess.choose import Engines
from preprocess.config import EngineSettings
from preprocess.encode import EngineError, ReferenceEngine, unequal_texts
from preprocess.engines import FastokensEngine, GigatokenEngine, ordinary
from preprocess.parity import odd_texts
from preprocess.tokenizer import load_tokenizer
from tests.conftest import SHARED_DATA, has_shared_data
from tests.helpers import read_column, run_cli

pytest.importorskip("gigatoken")
pytest.importorskip("fastokens")

NAMES = ("qwen3", *(pytest.param(name, marks=pytest.mark.long) for name in ("gpt2", "cl100k_base", "o200k_base")))
KINDS = (GigatokenEngine, FastokensEngine)


@pytest.fixture(scope="module", params=NAMES)
def shared_engines(request):
    """The engines for one of the real tokenizers, all of them loaded and checked."""
    if not has_shared_data():
        pytest.skip("needs ../shared/data/tokenizers")
    return Engines(load_tokenizer(SHARED_DATA / f"tokenizers/{request.param}/tokenizer.json", None))


def strings(texts):
    return pa.array(texts, pa.large_string())


def disagreements(engines, candidate, texts):
    """Numbers of the texts that the reference encodes otherwise than `candidate` with its routing."""
    check = ShardCheck(candidate, engines.reference, None, None, 0, len(texts))
    return unequal_texts(check.encode(texts), engines.reference.encode(texts)).tolist()


# real tokenizers


def test_both_fast_engines_take_every_real_tokenizer(shared_engines):
    names = [candidate.engine.name for candidate in shared_engines.candidates()]
    assert names == ["gigatoken", "fastokens", "tokenizers"]


def test_real_and_odd_texts_have_the_ids_of_the_reference(shared_engines, real_texts, bad_data):
    torture = ("unicode_torture", "special_tokens", "nul_and_control")
    texts = [text for name in torture for text in read_column(bad_data / f"{name}.parquet")]
    texts = strings([text or "" for text in (*texts, *odd_texts(), *real_texts)])
    for candidate in shared_engines.candidates():
        assert disagreements(shared_engines, candidate, texts) == []


def test_every_assigned_code_point_has_the_ids_of_the_reference(shared_engines):
    """With the tokenizer's own vocabulary, 8 neighbours at a time; the probe has looked at each alone."""
    runs = [
        range(code, code + 8)
        for code in (*range(0x80, 0xD800, 8), *range(0xE000, 0x20000, 8), *range(0x323B0, 0x324B0, 8))
    ]
    texts = strings(["a{0} {0}1".format("".join(map(chr, run))) for run in runs])
    for candidate in shared_engines.candidates():
        assert disagreements(shared_engines, candidate, texts) == []


@pytest.mark.slow
def test_a_part_of_every_real_file_has_the_ids_of_the_reference(shared_engines, real_data):
    texts = strings([text for path in real_data for text in read_column(path)[:40] if len(text) < 100_000])
    for candidate in shared_engines.candidates():
        assert disagreements(shared_engines, candidate, texts) == []


def test_all_real_text_has_the_same_ids_from_both_fast_engines(real_data):
    """What the reference takes minutes for: two engines that share no code agree on all of it."""
    if not has_shared_data():
        pytest.skip("needs ../shared/data/tokenizers")
    first, second, _ = Engines(load_tokenizer(SHARED_DATA / "tokenizers/gpt2/tokenizer.json", None)).candidates()
    for path in real_data:
        texts = strings(read_column(path))
        assert len(unequal_texts(first.engine.encode(texts), second.engine.encode(texts))) == 0, path


# one small tokenizer


@pytest.fixture(scope="module")
def small(tokenizer_path):
    return load_tokenizer(tokenizer_path, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "texts",
    [[], [""], ["", ""], ["", "a", ""], ["\x00"], ["<|endoftext|> </s>"], ["a" * 300_000], ["\u088f\u0c5c"]],
)
def test_an_engine_takes_any_array(kind, small, texts):
    engine, array = kind(ordinary(json.loads(small.raw))), strings(texts)
    ids, lengths = engine.encode(array)
    assert (ids.dtype, lengths.dtype, len(lengths)) == (np.uint32, np.int64, len(texts))
    assert unequal_texts((ids, lengths), ReferenceEngine(small.tokenizer).encode(array)).tolist() == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_honours_the_bounds_of_a_slice(kind, small, real_texts):
    array = strings(real_texts[:60]).slice(7, 40)
    wanted = ReferenceEngine(small.tokenizer).encode(array)
    assert unequal_texts(kind(ordinary(json.loads(small.raw))).encode(array), wanted).tolist() == []


@pytest.mark.parametrize("kind", KINDS)
def test_one_thread_gives_the_same(kind, small, real_texts):
    array = strings(real_texts)
    one, all_cores = (kind(ordinary(json.loads(small.raw)), threads).encode(array) for threads in (1, None))
    assert unequal_texts(one, all_cores).tolist() == []


def test_gigatoken_is_loaded_anew_when_its_cache_may_have_grown(small, real_texts, monkeypatch):
    monkeypatch.setattr("preprocess.engines.RENEW_BYTES", 1000)
    engine, array = GigatokenEngine(ordinary(json.loads(small.raw))), strings(real_texts[:50])
    first = engine._tokenizer
    engine.encode(array)
    assert engine._tokenizer is first
    engine.encode(array)
    assert engine._tokenizer is not first


# what is refused


def token(**changes):
    plain = {"id": 300, "content": "xyz", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {**plain, "special": False, **changes}


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {**BYTES, "use_regex": True}
WORDS = split({"Regex": r"\s+(?!\S)|\s+|\S+"})
DIGITS = {"type": "Digits", "individual_digits": True}


def sequence(*parts):
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(parts)}}


@pytest.mark.parametrize(
    ("changes", "gigatoken", "fastokens"),
    [
        ({}, None, None),
        ({"normalizer": {"type": "NFC"}}, None, None),
        ({"normalizer": {"type": "NFKC"}}, "normalizer is NFKC", "normalizer is NFKC"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer is Lowercase", None),
        ({"pre_tokenizer": None}, "no pre-tokenizer", "no pre-tokenizer"),
        ({"pre_tokenizer": BYTES}, "splits nothing", None),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer is Whitespace", "pre-tokenizer is Whitespace"),
        (sequence(WORDS, BYTES), None, None),
        (sequence(WORDS, GPT2), "splits twice", None),
        (sequence(WORDS, DIGITS, BYTES), "is Split, Digits, ByteLevel", None),
        (sequence(DIGITS, GPT2), "is Digits, ByteLevel", None),
        (sequence(split({"String": "a"}), BYTES), "splits at a plain string", None),
        (sequence(split({"Regex": "a"}, "Removed"), BYTES), "it removes text", None),
        (sequence(split({"Regex": "a"}, "Removed", invert=True), BYTES), None, None),
        (sequence(WORDS), "does not turn text into bytes", "does not turn text into bytes"),
        ({"added_tokens": [token(single_word=True)]}, "single_word", "single_word"),
        ({"added_tokens": [token(normalized=True)]}, None, None),
        ({"added_tokens": [token(normalized=True)], "normalizer": {"type": "NFC"}}, "is normalized", None),
        ({"added_tokens": [token(single_word=True, special=True)]}, None, None),  # never matched
        ({"model": {"dropout": 0.1}}, "dropout", "dropout"),
        ({"model": {"type": "Unigram"}}, "Unigram, not BPE", "Unigram, not BPE"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix", None),
        ({"model": {"continuing_subword_prefix": "##"}}, "continuing_subword_prefix", "continuing_subword_prefix"),
        ({"model": {"byte_fallback": True}}, "byte_fallback", "byte_fallback"),
        ({"model": {"vocab": {"a": 0}}}, "lacks 255 of the 256 bytes", "lacks 255 of the 256 bytes"),
    ],
)
def test_a_feature_that_an_engine_gets_wrong_is_refused_and_named(small, changes, gigatoken, fastokens):
    document = json.loads(small.raw)
    document = {**document, **changes, "model": {**document["model"], **changes.get("model", {})}}
    document = ordinary(document)
    for kind, reason in ((GigatokenEngine, gigatoken), (FastokensEngine, fastokens)):
        found = kind.refusal(document)
        assert (reason is None) == (found is None), found
        assert (reason or "") in (found or "")


def test_an_added_token_that_is_not_special_is_matched_by_every_engine(small, tmp_path):
    document = json.loads(small.raw)
    document["added_tokens"].append(token(id=2048, content="quark"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    engines = Engines(load_tokenizer(tmp_path / "tokenizer.json", None))
    texts = strings(["a quark<|endoftext|>quarks", "quark"])
    for candidate in engines.candidates():
        ids, _ = candidate.engine.encode(texts)
        assert (ids == 2048).sum() == 3
        assert disagreements(engines, candidate, texts) == []


def test_a_regex_that_gigatoken_does_not_know_is_left_to_fastokens(small, tmp_path):
    document = {**json.loads(small.raw), **sequence(split({"Regex": r"\p{N}{1,2}|\p{L}+|\s+|[^\s\p{L}\p{N}]+"}), BYTES)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    lines = []
    engines = Engines(load_tokenizer(tmp_path / "tokenizer.json", None), say=lines.append)
    assert [candidate.engine.name for candidate in engines.candidates()] == ["fastokens", "tokenizers"]
    assert lines[0].startswith("gigatoken is not used: gigatoken failed (")


def test_the_engine_can_be_chosen(small):
    for number, name in enumerate(("gigatoken", "fastokens", "tokenizers")):
        names = [found.engine.name for found in Engines(small, EngineSettings(engine=name)).candidates()]
        assert names == ["gigatoken", "fastokens", "tokenizers"][number:]


@pytest.mark.parametrize(("kind", "module"), [(GigatokenEngine, "gigatoken"), (FastokensEngine, "fastokens")])
def test_an_engine_that_is_not_installed_says_so(kind, module, small, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=rf"{module} is not installed \(pip install 'argonne\[fast\]'\)"):
        kind(ordinary(json.loads(small.raw)))


def test_a_build_without_fast_engines_gives_the_same_dataset(small_input, small_tokens, tokenizer_path, tmp_path):
    (tmp_path / "without/sitecustomize.py").parent.mkdir()
    (tmp_path / "without/sitecustomize.py").write_text(
        "import sys\nsys.modules.update(gigatoken=None, fastokens=None, awkward=None)\n"
    )
    options = ("--tokenizer", tokenizer_path, "--chunk-length", 64, "--shard-megabytes", 100_000 / (1 << 20))
    done = run_cli(
        "preprocess", "tokenize", small_input, tmp_path / "out", *options, PYTHONPATH=str(tmp_path / "without")
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "gigatoken is not used: awkward is not installed (pip install 'argonne[fast]')" in lines
    assert "fastokens is not used: fastokens is not installed (pip install 'argonne[fast]')" in lines
    assert f"encoding with tokenizers {ReferenceEngine.version}" in lines
    assert (tmp_path / "out/index.json").read_bytes() == (small_tokens / "index.json").read_bytes()


def test_special_tokens_of_a_file_are_text_though_other_libraries_match_them(small):
    raw = Tokenizer.from_str(small.raw.decode())
    assert small.identity.end_of_document_id in raw.encode("<|endoftext|>").ids
    for kind in KINDS:
        ids, _ = kind(ordinary(json.loads(small.raw))).encode(strings(["<|endoftext|>"]))
        assert small.identity.end_of_document_id not in ids
