"""Where an engine's Unicode tables are of another year, and that this is found out once."""

import json

import pyarrow as pa
import pytest

from preprocess import parity
from preprocess.encode import EngineError, ReferenceEngine
from preprocess.engines import GigatokenEngine, ordinary
from preprocess.parity import OddTexts, odd_texts, probe_document, unlike_code_points
from preprocess.remember import cache_directory
from preprocess.tokenizer import load_tokenizer

NEW = "\u088f\u0c5c\U000323b0"  # letters since Unicode 17


@pytest.fixture(scope="module")
def document(tokenizer_path):
    return ordinary(json.loads(tokenizer_path.read_bytes()))


def unlike(load, document, say=print):
    return unlike_code_points(load(document), load, document, say)


@pytest.fixture
def few_code_points(monkeypatch, tmp_path):
    """A cache of its own, and only the first code points to compare."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    probed = [([range(code, code + 1)], [f"a{chr(code)}"]) for code in (0xE9, 0x88F)]
    monkeypatch.setattr(parity, "_probes", lambda normalized: iter(probed))


def stand_in(document, wrong=""):
    """An engine that is the reference but for texts with a character of `wrong`."""
    from tokenizers import Tokenizer

    class Stand(ReferenceEngine):
        name, version = "stand-in", "1"

        def encode(self, texts):
            ids, lengths = super().encode(texts)
            hit = any(char in text for char in wrong for text in texts.to_pylist())
            return (ids ^ 1, lengths) if hit else (ids, lengths)

    return Stand(Tokenizer.from_str(json.dumps(document)))


def test_odd_texts_are_the_same_every_time_and_can_be_encoded():
    assert odd_texts(["<s>"]) == odd_texts(["<s>"])
    assert "a<s><s> b" in odd_texts(["<s>"])
    pa.array(odd_texts(), pa.large_string()).validate(full=True)


def test_an_odd_text_with_other_ids_is_named(tokenizer_path, document):
    reference = ReferenceEngine(load_tokenizer(tokenizer_path, None).tokenizer)
    OddTexts(reference, []).check(stand_in(document))
    with pytest.raises(EngineError, match=r"it gives other ids than tokenizers for .* odd texts, such as"):
        OddTexts(reference, []).check(stand_in(document, "\u0e33"))


def test_every_code_point_is_compared_and_those_of_another_unicode_are_found(document):
    """Of gigatoken, whose tables are newer than those of `tokenizers`; the answer is kept for all of this test run."""
    pytest.importorskip("gigatoken")
    found = unlike(GigatokenEngine, document)
    inside = [any(first <= ord(char) <= last for first, last in found.ranges) for char in NEW]
    assert len(set(inside)) == 1  # all of them while the tables differ, none when they no longer do
    assert len(found) < 20_000
    texts = pa.array([f" {char}'s a{char}b" for char in NEW], pa.large_string())
    assert found.texts_with(texts).tolist() == ([0, 1, 2] if inside[0] else [])


def test_all_code_points_are_probed_once():
    for normalized in (False, True):
        blamed = [blame for batch, _ in parity._probes(normalized) for blame in batch]
        covered = bytearray(0x110000)
        for blame in blamed:
            covered[blame.start : blame.stop] = b"\x01" * len(blame)
        assert [code for code in range(0x110000) if not covered[code]] == list(range(0xD800, 0xE000))


def test_what_differs_is_asked_once_and_kept(document, few_code_points):
    said = []
    for _ in range(2):
        found = unlike(lambda found: stand_in(found, "\u088f"), document, said.append)
        assert found.ranges == [(0x88F, 0x88F)]
    assert said == ["comparing stand-in 1 with tokenizers on every code point (once)"]
    other_vocabulary = {**document, "model": {**document["model"], "merges": []}}
    assert unlike(stand_in, other_vocabulary, said.append).ranges == [(0x88F, 0x88F)]
    other_rules = {**document, "pre_tokenizer": {**document["pre_tokenizer"], "add_prefix_space": True}}
    assert unlike(stand_in, other_rules, said.append).ranges == []
    assert len(said) == 2


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff", None])
def test_a_damaged_cache_is_computed_again(document, few_code_points, damage):
    said = []
    unlike(stand_in, document, said.append)
    (path,) = cache_directory().iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"stand-in 1", b"stand-in 2") if damage is None else damage)
    assert unlike(stand_in, document, said.append).ranges == []
    assert len(said) == 2
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_only(document, few_code_points, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = []
    assert unlike(stand_in, document, said.append).ranges == []
    assert "cannot be written (" in said[1]


def test_an_engine_that_differs_on_ascii_is_refused(document, few_code_points, monkeypatch):
    monkeypatch.setattr(parity, "_probes", lambda normalized: iter([([range(65, 66)], ["aA"])]))
    with pytest.raises(EngineError, match="it gives other ids than tokenizers for 'A'"):
        unlike(lambda found: stand_in(found, "A"), document, lambda line: None)


def test_with_a_normalizer_what_this_python_does_not_know_is_left_to_the_reference(document, few_code_points):
    normalized = {**document, "normalizer": {"type": "NFC"}}
    found = unlike(stand_in, normalized, lambda line: None)
    assert found.texts_with(pa.array(["a", "\U000e0080", "\u0378"], pa.large_string())).tolist() == [1, 2]


def test_the_probe_shows_where_text_is_cut(document):
    engine = stand_in(probe_document(document))
    pieces = [engine.encode(pa.array([text], pa.large_string()))[1][0] for text in ("a\u00e9", "a\u00d7")]
    assert pieces == [2, 3]  # a letter stands in one piece with the a, a sign does not
