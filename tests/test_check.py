"""An engine that is wrong is found out, at load or in a shard, and the dataset is right all the same."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, pre_tokenizers

from preprocess.build import build
from preprocess.check import MAX_SAMPLED_BYTES, Candidate, ShardCheck
from preprocess.choose import Engines
from preprocess.codepoints import CodePoints
from preprocess.config import BuildSettings, EngineSettings, Execution, TokenizerSettings
from preprocess.encode import EngineError, ReferenceEngine
from preprocess.plan import make_plan
from preprocess.select import Selector
from preprocess.sources import read_footer
from preprocess.tokenizer import load_tokenizer
from preprocess.writer import write_shard
from shared.errors import ConfigError, InputError
from shared.format import Selection
from tests.helpers import contents, write_parquet

TRAP = "kumquat"  # no odd text has it


def from_reference(change, *, named="gigatoken", calls=None):
    """A class of engines that is the reference engine with `change` made to what it gives: a buggy engine."""

    class Stand:
        name, version = named, "0.0-test"

        def __init__(self, document, num_threads=None):
            from tokenizers import Tokenizer

            self._reference = ReferenceEngine(Tokenizer.from_str(json.dumps(document)))

        @staticmethod
        def refusal(document):
            return None

        def encode(self, texts):
            ids, lengths = self._reference.encode(texts)
            return change(texts.to_pylist(), ids.copy(), lengths)

    return Stand


def right(texts, ids, lengths):
    return ids, lengths


def wrong_on_the_trap(texts, ids, lengths):
    starts = np.cumsum([0, *lengths])
    for number, text in enumerate(texts):
        if TRAP in text:
            ids[starts[number]] ^= 1
    return ids, lengths


def wrong_on_everything(texts, ids, lengths):
    return ids ^ 1, lengths


def out_of_the_vocabulary(texts, ids, lengths):
    return (ids + (70_000 if any(TRAP in text for text in texts) else 0)).astype(np.uint32), lengths


def failing(texts, ids, lengths):
    if any(TRAP in text for text in texts):
        raise EngineError("gigatoken failed (PanicException: overflow)")
    return ids, lengths


@pytest.fixture
def no_probe(monkeypatch):
    """Stand-ins are not tried on every code point, which takes seconds: `test_parity.py` does that."""
    monkeypatch.setattr("preprocess.choose.unlike_code_points", lambda *_: CodePoints([]))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path):
    return load_tokenizer(tokenizer_path, None)


def written(directory, tokenizer, texts, kinds, settings=None):
    """The receipt of the one shard of `texts`, written to `directory` by engines of these kinds."""
    path = write_parquet(directory / "in/a.parquet", texts)
    directory = directory / f"out-{len(list(directory.iterdir()))}"
    directory.mkdir()
    plan = make_plan([read_footer(path, path.parent, "text")], BuildSettings(64), tokenizer.identity)
    engines, counted = Engines(tokenizer, settings, kinds, say=lambda line: None), []
    shard = write_shard(
        directory,
        path.parent,
        plan,
        0,
        engines=engines,
        selector=Selector(Selection()),
        report=lambda *new: counted.append(new),
    )
    assert np.sum(counted, axis=0).tolist() == [shard.text_bytes, shard.num_tokens]
    return json.loads((directory / "00000.json").read_bytes()), directory


@pytest.fixture(scope="module")
def long_input(real_texts):
    """300 texts of which the last but one has the trap in it and is the longest."""
    return [*real_texts[:298], TRAP * (MAX_SAMPLED_BYTES // len(TRAP)), "end"]


@pytest.fixture
def expected(tmp_path, tokenizer, long_input):
    _, directory = written(tmp_path / "expected", tokenizer, long_input, ())
    return contents(directory)


def same_but_for_receipts(directory, expected):
    found = contents(directory)
    return {name: found[name] for name in found if name.endswith("npy")} == {
        name: expected[name] for name in expected if name.endswith("npy")
    }


@pytest.mark.usefixtures("no_probe")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (wrong_on_the_trap, "other ids than tokenizers for row 298"),
        (out_of_the_vocabulary, "id 7"),
        (failing, "gigatoken failed (PanicException: overflow)"),
    ],
)
def test_a_shard_goes_to_the_next_engine_when_the_first_is_wrong(
    tmp_path, tokenizer, long_input, expected, change, reason, capsys
):
    kinds = [from_reference(change), from_reference(right, named="fastokens")]
    receipt, directory = written(tmp_path, tokenizer, long_input, kinds)
    assert same_but_for_receipts(directory, expected)
    assert (receipt["engine"], receipt["num_sampled"], receipt["compared_with"]) == ("fastokens", 7, None)
    (failover,) = receipt["failovers"]
    assert failover["engine"] == "gigatoken 0.0-test"
    assert failover["reason"].startswith(reason)
    assert "shard 0 is encoded again with the next engine: gigatoken 0.0-test" in capsys.readouterr().out


@pytest.mark.usefixtures("no_probe")
def test_the_reference_is_left_when_all_are_wrong(tmp_path, tokenizer, long_input, expected):
    kinds = [from_reference(wrong_on_the_trap), from_reference(wrong_on_the_trap, named="fastokens")]
    receipt, directory = written(tmp_path, tokenizer, long_input, kinds)
    assert same_but_for_receipts(directory, expected)
    assert (receipt["engine"], receipt["num_sampled"]) == ("tokenizers", 0)
    assert [failover["engine"] for failover in receipt["failovers"]] == ["gigatoken 0.0-test", "fastokens 0.0-test"]


def hidden_trap(real_texts):
    """A text with the trap that no sample holds: neither long, nor foreign, nor drawn."""
    from preprocess.check import drawn_rows

    texts = list(real_texts[:300])
    row = next(row for row in range(300) if row not in drawn_rows(0, 300) and texts[row].isascii())
    texts[row] = TRAP
    return texts, row


def one_longer_on_the_trap(texts, ids, lengths):
    """Another id than the right one where the trap is, one that spells another number of bytes."""
    starts = np.cumsum([0, *lengths])
    for number, text in enumerate(texts):
        if TRAP in text:
            ids[starts[number]] = 300
    return ids, lengths


@pytest.mark.usefixtures("no_probe")
def test_bytes_that_do_not_add_up_are_caught_where_no_sample_is(tmp_path, tokenizer, real_texts):
    texts, _ = hidden_trap(real_texts)
    receipt, directory = written(tmp_path, tokenizer, texts, [from_reference(one_longer_on_the_trap)])
    assert receipt["engine"] == "tokenizers"
    reason = receipt["failovers"][0]["reason"]
    assert re.fullmatch(r"ids that spell [0-9,]+ bytes for [0-9,]+ bytes of text", reason)
    _, expected = written(tmp_path, tokenizer, texts, ())
    assert same_but_for_receipts(directory, contents(expected))


def test_a_tokenizer_that_drops_some_text_is_refused_where_it_does(tmp_path, tokenizer_path):
    lossy = Tokenizer.from_file(str(tokenizer_path))
    lossy.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(TRAP, "removed"), lossy.pre_tokenizer])
    lossy.save(str(tmp_path / "lossy.json"))
    path = write_parquet(tmp_path / "in/a.parquet", ["an apple", f"a {TRAP} too"])
    with pytest.raises(InputError) as caught:
        build(str(path), tmp_path / "out", BuildSettings(64), TokenizerSettings(str(tmp_path / "lossy.json")))
    assert str(caught.value) == (
        "shard 0 gave ids that spell 14 bytes for 21 bytes of text: the tokenizer contradicts itself, "
        "use another tokenizer.json"
    )
    assert not (tmp_path / "out/index.json").exists()


@pytest.mark.usefixtures("no_probe")
def test_full_verification_catches_what_no_sample_holds(tmp_path, tokenizer, real_texts):
    texts, row = hidden_trap(real_texts)
    kinds = [from_reference(wrong_on_the_trap), from_reference(right, named="fastokens")]
    receipt, sampled = written(tmp_path, tokenizer, texts, kinds)
    assert (receipt["engine"], receipt["failovers"]) == ("gigatoken", [])
    receipt, full = written(tmp_path, tokenizer, texts, kinds, EngineSettings(verify="full"))
    assert (receipt["engine"], receipt["compared_with"]) == ("fastokens", f"tokenizers {ReferenceEngine.version}")
    assert receipt["failovers"][0]["reason"] == f"other ids than fastokens 0.0-test for row {row}"
    _, expected = written(tmp_path, tokenizer, texts, ())
    assert same_but_for_receipts(full, contents(expected))
    assert not same_but_for_receipts(sampled, contents(expected))


@pytest.mark.usefixtures("no_probe")
def test_full_verification_of_one_engine_is_against_the_reference(tmp_path, tokenizer, real_texts):
    texts, row = hidden_trap(real_texts)
    receipt, _ = written(tmp_path, tokenizer, texts, [from_reference(wrong_on_the_trap)], EngineSettings(verify="full"))
    assert (receipt["engine"], receipt["compared_with"]) == ("tokenizers", None)
    assert receipt["failovers"][0]["reason"].endswith(f"tokenizers {ReferenceEngine.version} for row {row}")


def test_a_shard_that_was_only_sampled_is_made_again_for_full_verification(small_tokens, small_input, tmp_path, capsys):
    pytest.importorskip("gigatoken")
    arguments = (
        str(small_input),
        tmp_path / "out",
        BuildSettings(64, "text", 100_000),
        TokenizerSettings(vocab_size=2048),
    )
    build(*arguments)
    build(*arguments[:3], TokenizerSettings(), Execution(engines=EngineSettings(verify="full")))
    assert "is complete again" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/00000.json").read_bytes())["compared_with"].startswith("fastokens ")
    build(*arguments[:3], TokenizerSettings(), Execution(engines=EngineSettings(verify="full")))
    assert "nothing to do" in capsys.readouterr().out
    assert (tmp_path / "out/index.json").read_bytes() == (small_tokens / "index.json").read_bytes()


@pytest.mark.parametrize("engine", ["gigatoken", "fastokens", "tokenizers"])
def test_the_dataset_does_not_depend_on_the_engine(small_input, small_tokens, tokenizer_path, tmp_path, engine):
    settings = (BuildSettings(64, "text", 100_000), TokenizerSettings(str(tokenizer_path)))
    build(str(small_input), tmp_path / "out", *settings, Execution(engines=EngineSettings(engine)))
    found, known = contents(tmp_path / "out"), contents(small_tokens)
    kept = [name for name in known if name.endswith("npy") or name in ("index.json", "tokenizer.json")]
    assert {name: found[name] for name in kept} == {name: known[name] for name in kept}
    receipt = json.loads(found["00000.json"])
    assert receipt["engine"] in (engine, "tokenizers")
    assert receipt["failovers"] == []


@pytest.mark.usefixtures("no_probe")
def test_an_engine_that_is_wrong_on_an_odd_text_is_not_used(tokenizer):
    lines = []
    engines = Engines(tokenizer, kinds=[from_reference(wrong_on_everything)], say=lines.append)
    engines.announce()
    assert lines[0].startswith("gigatoken is not used: it gives other ids than tokenizers for ")
    assert lines[1:] == [f"encoding with tokenizers {ReferenceEngine.version}"]


def test_texts_with_code_points_seen_otherwise_go_to_the_reference_and_are_counted(tokenizer, real_texts):
    engine = from_reference(wrong_on_the_trap)(json.loads(tokenizer.raw))
    reference = ReferenceEngine(tokenizer.tokenizer)
    texts = [f"{TRAP}\u088f", "", *real_texts[:20], f"\U000323b0{TRAP}", "\u088e"]
    array = pa.array(texts, pa.large_string())
    check = ShardCheck(
        Candidate(engine, CodePoints([(0x88F, 0x88F), (0x323B0, 0x33479)])), reference, None, None, 0, len(texts)
    )
    ids, lengths = check.encode(array)
    check.finish()
    wanted_ids, wanted_lengths = reference.encode(array)
    assert (ids.tolist(), lengths.tolist()) == (wanted_ids.tolist(), wanted_lengths.tolist())
    assert (check.num_routed, check.num_sampled) == (2, 6)


def sample_of(tokenizer, texts, batch):
    """Rows of `texts` that are sampled when they come in batches of `batch`."""
    rows = []

    class Recorder(ReferenceEngine):
        def encode(self, array):
            rows.extend(array.to_pylist())
            return super().encode(array)

    engine, recorder = ReferenceEngine(tokenizer.tokenizer), Recorder(tokenizer.tokenizer)
    check = ShardCheck(Candidate(engine, CodePoints([])), recorder, None, None, 0, len(texts))
    for start in range(0, len(texts), batch):
        check.encode(pa.array(texts[start : start + batch], pa.large_string()))
    check.finish()
    return rows


def test_the_sample_has_the_longest_and_the_least_ascii_and_does_not_depend_on_batches(tokenizer):
    texts = [f"text {number} " + "a" * (number % 97) for number in range(2000)]
    texts[1500] = "b" * MAX_SAMPLED_BYTES
    texts[77] = "c" * (MAX_SAMPLED_BYTES + 1)
    texts[900:902] = ["\u6d77\u306f", "\u6d77a"]
    sample = sample_of(tokenizer, texts, 2000)
    assert len(sample) == 6  # 3 by hash, the longest, two that are not ASCII
    assert {texts[1500], texts[900], texts[901]} <= set(sample)
    assert texts[77] not in sample
    assert sample_of(tokenizer, texts, 333) == sample


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "abacus"}, "--engine is 'abacus': one of gigatoken, fastokens, tokenizers is wanted"),
        ({"verify": "some"}, "--verify is 'some': sample or full is wanted"),
        ({"num_threads": 0}, "0 threads to encode with: at least 1 is wanted"),
    ],
)
def test_engine_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        EngineSettings(**options)
