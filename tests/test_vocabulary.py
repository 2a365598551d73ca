"""What a tokenizer is said to make of a text is what it makes of it."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from preprocess import trainer
from preprocess.choose import Engines
from preprocess.config import EngineSettings, TrainerSettings
from preprocess.sampling import open_sample
from preprocess.tokenizer import load_tokenizer
from preprocess.tokenizer_report import shown
from preprocess.vocabulary import LANGUAGE, Entry, entries, largest_languages, measure, spelled_bytes, unused
from shared.errors import InputError
from tests.helpers import read_column, run_cli, write_parquet
from tests.test_report import HOSTILE, shows_no_control

TEXTS = {"en": ["the cat", "the dog and the cat"], "de": ["der Hund"], None: ["1234"], "x\x1b[2J": ["\u6d77\u306f"]}


@pytest.fixture
def told(tmp_path):
    """A directory of one file with a language column, and one without."""
    rows = [(text, language) for language, texts in TEXTS.items() for text in texts]
    table = pa.table(
        {"text": [text for text, _ in rows] + [None, ""], "language": [name for _, name in rows] + ["en"] * 2}
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in/a.parquet", row_group_size=2)
    write_parquet(tmp_path / "in/b.parquet", ["not told"])
    return tmp_path / "in"


def usage(tokenizer, texts):
    """Documents, bytes and tokens, counted the plain way."""
    sizes = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
    return len(texts), sum(len(text.encode()) for text in texts), sum(sizes)


def test_the_sums_are_those_of_tokenizers_by_language_too(told, tokenizer_path):
    loaded = load_tokenizer(tokenizer_path, None)
    measured = measure(loaded, open_sample(str(told), "text", 1 << 20).labelled(LANGUAGE), Engines(loaded))
    expected = {**TEXTS, None: ["1234", "not told"]}
    for language, texts in expected.items():
        found = measured.languages[language]
        assert (found.num_documents, found.text_bytes, found.num_tokens) == usage(loaded.tokenizer, texts)
    every = [text for texts in expected.values() for text in texts]
    total = measured.total
    assert (total.num_documents, total.text_bytes, total.num_tokens) == usage(loaded.tokenizer, every)
    counts = Counter(number for text in every for number in loaded.tokenizer.encode(text).ids)
    assert {number: count for number, count in enumerate(measured.counts.tolist()) if count} == counts


def test_the_largest_languages_come_first_and_the_others_are_summed(told, tokenizer_path):
    loaded = load_tokenizer(tokenizer_path, None)
    measured = measure(loaded, open_sample(str(told), "text", 1 << 20).labelled(LANGUAGE), Engines(loaded))
    (first, _), (second, _), (others, rest) = largest_languages(measured, 2)
    assert (first, second, others) == ("en", None, "2 others")
    assert rest.text_bytes == len(b"der Hund") + 6
    assert [name for name, _ in largest_languages(measured, 4)] == ["en", None, "de", "x\x1b[2J"]


def test_an_engine_that_is_wrong_is_noticed_and_the_next_one_measures(told, tokenizer_path):
    loaded, said = load_tokenizer(tokenizer_path, None), []
    rows = list(open_sample(str(told), "text", 1 << 20).labelled(LANGUAGE))
    engines = Engines(loaded, kinds=[WrongLater], say=said.append)
    right = measure(loaded, rows, Engines(loaded, EngineSettings("tokenizers")))
    assert measure(loaded, rows, engines, said.append).counts.tolist() == right.counts.tolist()
    assert any(
        "measuring again with the next engine: wrong later 1 gave other ids than tokenizers" in line for line in said
    )


class WrongLater:
    """An engine that is right about odd texts and code points and wrong about cats."""

    name, version = "wrong later", "1"

    def __init__(self, document, num_threads=None):
        from preprocess.encode import ReferenceEngine

        self.right = ReferenceEngine(Tokenizer.from_str(json.dumps(document)))

    @classmethod
    def refusal(cls, document):
        return None

    def encode(self, texts):
        ids, lengths = self.right.encode(texts)
        return (ids + 1, lengths) if any("cat" in text for text in texts.to_pylist()) else (ids, lengths)


def test_an_input_without_text_is_refused(tmp_path, tokenizer_path):
    write_parquet(tmp_path / "a.parquet", ["", None])
    loaded = load_tokenizer(tokenizer_path, None)
    with pytest.raises(InputError, match="the sample has no text: every text in it is null or empty"):
        measure(loaded, open_sample(str(tmp_path), "text", 1 << 20).labelled(LANGUAGE), Engines(loaded))


def test_unused_ids_are_those_that_text_can_give_and_this_text_has_not(tokenizer_path):
    loaded = load_tokenizer(tokenizer_path, None)
    rows = [(pa.array(["the"], pa.large_string()), None)]
    vocabulary = entries(loaded, measure(loaded, rows, Engines(loaded)).counts)
    assert [entry.id for entry in vocabulary] == list(range(2048))
    never = {entry.id for entry in unused(vocabulary)}
    assert never == set(range(1, 2048)) - set(loaded.tokenizer.encode("the").ids)  # 0 is special
    assert [entry.name for entry in vocabulary if entry.spelled is None] == ["<|endoftext|>"]


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "o200k_base"])
def test_every_entry_of_a_real_tokenizer_is_spelled_as_it_decodes(shared_tokenizer, name):
    loaded = shared_tokenizer(name)
    for entry in entries(loaded, [0] * loaded.identity.vocab_size)[::97]:
        if entry.spelled is not None:
            decoded = loaded.tokenizer.decode([entry.id], skip_special_tokens=False)
            assert entry.spelled.decode(errors="replace") == decoded


@pytest.fixture
def shared_tokenizer():
    from tests.conftest import SHARED_DATA, has_shared_data

    if not has_shared_data():
        pytest.skip("needs ../shared/data/tokenizers")
    return lambda name: load_tokenizer(SHARED_DATA / f"tokenizers/{name}/tokenizer.json", None)


@pytest.mark.parametrize(
    ("name", "spelled"),
    [("a", b"a"), ("\u0120\u00c3\u00a9", " \u00e9".encode()), ("\u2581the", "\u2581the".encode()), ("\u00e6", b"\xe6")],
)
def test_a_byte_level_entry_is_spelled_in_bytes_and_any_other_as_it_is(name, spelled):
    assert spelled_bytes(name) == spelled


@pytest.mark.parametrize(
    ("spelled", "text"),
    [
        (b" the", '" the"'),
        (b"\n\t\x1b[2J", r'"\n\t\u001b[2J"'),
        ("\u202e\u6d77".encode(), '"\\u202e\u6d77"'),
        (b"\xe6\xb5", r'"\\xe6\\xb5"'),
        (b"-" * 100, f'"{"-" * 60}" ... (100 characters)'),
    ],
)
def test_an_entry_is_shown_in_quotes_and_commands_no_terminal(spelled, text):
    assert shown(Entry(5, "x", spelled, 0)) == text


# the command


def test_the_report_and_its_json_say_what_there_is(small_input, tokenizer_path, real_texts):
    found = run_cli("preprocess", "tokenizer-report", tokenizer_path, small_input, "--json", "--sample-megabytes", 1000)
    assert (found.returncode, found.stderr) == (0, "")
    document = json.loads(found.stdout)
    tokenizer = load_tokenizer(tokenizer_path, None).tokenizer
    num_documents, text_bytes, num_tokens = usage(tokenizer, real_texts)
    assert document["sample"] == {
        "num_documents": num_documents,
        "text_bytes": text_bytes,
        "num_tokens": num_tokens,
        "bytes_per_token": text_bytes / num_tokens,
    }
    counts = Counter(number for text in real_texts for number in tokenizer.encode(text, add_special_tokens=False).ids)
    assert document["unused"]["ids"] == [number for number in range(1, 2048) if number not in counts]
    assert document["unused"]["share"] == len(document["unused"]["ids"]) / 2048
    frequent = [
        (number, counts[number]) for number in sorted(counts, key=lambda number: (-counts[number], number))[:10]
    ]
    assert [(entry["id"], entry["uses"]) for entry in document["most_frequent"]] == frequent
    sizes = [entry["size_bytes"] for entry in document["longest"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == max(len(tokenizer.decode([number]).encode()) for number in range(257, 2048))
    assert [language["language"] for language in document["languages"]] == [None]
    table = run_cli("preprocess", "tokenizer-report", tokenizer_path, small_input, "--sample-megabytes", 1000)
    assert (table.returncode, table.stderr) == (0, "")
    for fact in (f"{num_documents:,} documents", f"{num_tokens:,}, {text_bytes / num_tokens:.2f} bytes per token"):
        assert fact in table.stdout
    assert "language" not in table.stdout  # none is told


def test_a_smaller_sample_is_less_text(small_input, tokenizer_path):
    options = ("--json", "--sample-megabytes", 0.1)
    document = json.loads(run_cli("preprocess", "tokenizer-report", tokenizer_path, small_input, *options).stdout)
    assert 70_000 < document["sample"]["text_bytes"] < 140_000


def test_languages_and_entries_reach_a_terminal_without_control_characters(told, tmp_path):
    write_parquet(told / "c.parquet", [HOSTILE] * 3)
    texts = [pa.array([HOSTILE] * 3, pa.large_string())]
    raw = trainer.train(texts, TrainerSettings(400, ("<|\u6d77|>",)), lambda line: None)
    (tmp_path / "t\x1b[31m.json").write_bytes(raw)
    options = ("--end-of-document", "<|\u6d77|>")
    done = run_cli("preprocess", "tokenizer-report", tmp_path / "t\x1b[31m.json", told, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert shows_no_control(done.stdout)
    for fact in (r"t\x1b[31m.json", r"x\x1b[2J", "(not told)", "de", "<|\u6d77|>"):
        assert fact in done.stdout


def test_what_cannot_be_read_is_one_line(tmp_path, small_input, tokenizer_path):
    for arguments, message in [
        ((tmp_path / "no.json", small_input), r"no.json cannot be read"),
        (
            (tokenizer_path, tmp_path / "no"),
            "no not found: a directory, a glob pattern or a *.parquet, *.jsonl or *.jsonl.zst file is wanted",
        ),
        ((tokenizer_path, small_input, "--text-column", "body"), "has no column 'body'"),
        ((tokenizer_path, small_input, "--end-of-document", "<no>"), "has no token '<no>'"),
    ]:
        done = run_cli("preprocess", "tokenizer-report", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert message in done.stderr


def test_real_files_tell_their_languages(real_data, tmp_path, tokenizer_path):
    (tmp_path / "a.parquet").symlink_to(real_data[0])
    languages = set(read_column(real_data[0], "language"))
    options = ("--json", "--sample-megabytes", 1)
    document = json.loads(run_cli("preprocess", "tokenizer-report", tokenizer_path, tmp_path, *options).stdout)
    assert {language["language"] for language in document["languages"]} <= languages
    assert sum(language["text_bytes"] for language in document["languages"]) == document["sample"]["text_bytes"]
    assert sum(language["share"] for language in document["languages"]) == pytest.approx(1)
