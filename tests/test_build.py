import hashlib
import os
import re
import shutil
import signal
import time
from itertools import chain, cycle, islice

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocess import jsonl
from preprocess.__main__ import main
from preprocess.build import build
from preprocess.choose import Engines
from preprocess.config import BuildSettings, TokenizerSettings
from preprocess.encode import ReferenceEngine
from preprocess.plan import make_plan
from preprocess.progress import Progress
from preprocess.receipts import receipt_settings
from preprocess.select import Selector
from preprocess.shard import pack
from preprocess.sources import read_footer
from preprocess.tokenizer import load_tokenizer
from preprocess.writer import write_shard
from shared.errors import ConfigError, FormatError, InputError, UserError
from shared.format import TOKEN_DTYPES, Selection, open_tokens, read_index, stored_size
from shared.locks import exclusive
from shared.storage import write_sealed
from tests import jsonl_cases
from tests.helpers import (
    contents,
    dataset_rows,
    plain_tokenizer,
    read_column,
    run_cli,
    start_cli,
    write_jsonl,
    write_parquet,
)

ALL = Selector(Selection())


def tokenize(data, tokens, tokenizer_path, **options):
    values = {"chunk_length": 64, "shard_bytes": 100_000, **options}
    return build(str(data), tokens, BuildSettings(**values), TokenizerSettings(str(tokenizer_path)))


def expected_ids(tokenizer, text):
    """An independent tokenization: the ids of a text and the end of the document, nothing for nothing."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids if text else []
    return [*ids, tokenizer.token_to_id("<|endoftext|>")] if ids else []


def check_exactly_once(directory, texts, chunk_length):
    """Every token of every document is in the dataset once, in order, and every one but a first is a target once."""
    index, tokenizer = read_index(directory), plain_tokenizer(directory)
    wanted = [expected_ids(tokenizer, text) for text in texts]
    assert [ids for _, _, ids in dataset_rows(directory)] == wanted
    targets, firsts = [], []
    for number, shard in enumerate(index.shards):
        tokens = np.asarray(open_tokens(directory, index, number)).tolist()
        chunks = [tokens[i * chunk_length : (i + 1) * chunk_length + 1] for i in range(shard.num_chunks)]
        assert all(len(chunk) == chunk_length + 1 for chunk in chunks)
        stream = list(chain.from_iterable(chunk[1:] for chunk in chunks))
        padding = [index.tokenizer.end_of_document_id] * shard.num_padding
        assert tokens[shard.num_tokens :] == padding
        targets += stream[: max(shard.num_tokens - 1, 0)]
        firsts += tokens[: min(shard.num_tokens, 1)]
    starts = np.cumsum([0, *index.shard_tokens()]).tolist()
    flat = list(chain.from_iterable(wanted))
    assert firsts == [flat[start] for start, size in zip(starts, index.shard_tokens(), strict=False) if size]
    assert len(targets) == len(flat) - len(firsts)
    return index


@pytest.mark.parametrize("chunk_length", [17, 64, 2048])
def test_every_token_of_every_document_is_there_exactly_once_in_order(
    real_texts, tokenizer_path, tmp_path, chunk_length
):
    one_token = plain_tokenizer(tokenizer_path.parent).decode([300])
    texts = ["", one_token, None, *real_texts[:120], "", one_token, "a"]
    write_parquet(tmp_path / "in/000_00002.parquet", texts[:60], rows_per_group=25)
    write_parquet(tmp_path / "in/000_00010.parquet", texts[60:], rows_per_group=25)
    index = tokenize(tmp_path / "in", tmp_path / "out", tokenizer_path, chunk_length=chunk_length)
    check_exactly_once(tmp_path / "out", texts, chunk_length)
    assert [source.path for source in index.sources] == ["000_00002.parquet", "000_00010.parquet"]
    assert len(index.shards) > 2
    assert sum(shard.num_null for shard in index.shards) == 1
    assert sum(shard.num_empty for shard in index.shards) == 2
    assert sum(shard.num_documents for shard in index.shards) == len(texts) - 3
    assert sum(shard.text_bytes for shard in index.shards) == sum(len((text or "").encode()) for text in texts)


def test_whole_real_row_groups_are_there_exactly_once(real_data, tokenizer_path, tmp_path):
    texts = [text for text in read_column(real_data[0])[:600] if len(text) < 50_000]
    write_parquet(tmp_path / "in/a.parquet", texts, rows_per_group=1000)
    index = tokenize(tmp_path / "in", tmp_path / "out", tokenizer_path, chunk_length=2048)
    assert len(index.shards) == 1
    check_exactly_once(tmp_path / "out", texts, 2048)


@given(
    texts=st.lists(st.one_of(st.none(), st.text(max_size=30)), min_size=1, max_size=30),
    chunk_length=st.integers(1, 70),
    rows_per_group=st.integers(1, 30),
    shard_bytes=st.integers(1, 500),
)
@settings(max_examples=40, deadline=None)
def test_any_documents_round_trip_in_chunks_of_any_length(
    tokenizer_path, tmp_path_factory, texts, chunk_length, rows_per_group, shard_bytes
):
    directory = tmp_path_factory.mktemp("any")
    write_parquet(directory / "in/a.parquet", [*texts, "x"], rows_per_group=rows_per_group)
    options = {"chunk_length": chunk_length, "shard_bytes": shard_bytes}
    tokenize(directory / "in", directory / "out", tokenizer_path, **options)
    check_exactly_once(directory / "out", [*texts, "x"], chunk_length)


@given(lengths=st.lists(st.integers(0, 5), max_size=30), end=st.integers(0, 9))
def test_packing_puts_one_end_behind_every_text_that_has_ids(lengths, end):
    ids = np.arange(sum(lengths), dtype=np.uint32)
    tokens, sizes = pack(ids, np.array(lengths, np.int64), end, np.dtype("<u2"))
    pieces = np.split(ids, np.cumsum(lengths))[: len(lengths)]
    assert tokens.tolist() == list(chain.from_iterable([*piece.tolist(), end] for piece in pieces if len(piece)))
    assert sizes.tolist() == [length + (length > 0) for length in lengths]


SLOWLY = ("--engine", "tokenizers")  # a build that is to be killed must last until then
VALID = [
    "empty_strings",
    "null_texts",
    "empty_row_groups",
    "one_row_per_group",
    "extra_and_reordered_columns",
    "two_text_case",
    "large_string",
    "dictionary_string",
    "string_view",
    "page_v2_delta",
    "no_arrow_schema",
    "special_tokens",
    "nul_and_control",
    "unicode_torture",
]


@pytest.mark.parametrize("name", VALID)
def test_a_valid_odd_file_becomes_exactly_its_documents(bad_data, tokenizer_path, tmp_path, name):
    tokenize(bad_data / f"{name}.parquet", tmp_path / "out", tokenizer_path)
    check_exactly_once(tmp_path / "out", read_column(bad_data / f"{name}.parquet"), 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["long_lines", "huge_document"])
def test_a_huge_document_comes_back_whole(bad_data, tokenizer_path, tmp_path, name):
    tokenize(bad_data / f"{name}.parquet", tmp_path / "out", tokenizer_path)
    tokenizer = plain_tokenizer(tmp_path / "out")
    texts = [tokenizer.decode(ids[:-1], skip_special_tokens=False) for _, _, ids in dataset_rows(tmp_path / "out")]
    assert texts == read_column(bad_data / f"{name}.parquet")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("all_null_texts", "no documents: every text in the input is null or empty"),
        ("text_null_type", "no documents: every text in the input is null or empty"),
        ("zero_rows", "has no rows: name an input that holds text"),
        ("zero_row_groups", "has no rows: name an input that holds text"),
    ],
)
def test_a_valid_file_without_documents_alone_is_refused(bad_data, tokenizer_path, tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        tokenize(bad_data / f"{name}.parquet", tmp_path / "out", tokenizer_path)
    assert not (tmp_path / "out/index.json").exists()


@pytest.mark.parametrize("name", jsonl_cases.VALID)
def test_a_valid_odd_json_lines_file_becomes_exactly_its_documents(tokenizer_path, tmp_path, name):
    file_name, data, texts = jsonl_cases.VALID[name]
    (tmp_path / file_name).write_bytes(data)
    tokenize(tmp_path / file_name, tmp_path / "out", tokenizer_path)
    index = check_exactly_once(tmp_path / "out", texts, 64)
    assert [(source.path, source.identity) for source in index.sources] == [
        (file_name, hashlib.sha256(data).hexdigest())
    ]


@pytest.mark.parametrize("name", jsonl_cases.EMPTY)
def test_json_lines_without_documents_alone_are_refused(tokenizer_path, tmp_path, name):
    file_name, data, message = jsonl_cases.EMPTY[name]
    (tmp_path / file_name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        tokenize(tmp_path / file_name, tmp_path / "out", tokenizer_path)
    write_jsonl(tmp_path / "in/b.jsonl", ["a"])
    (tmp_path / file_name).rename(tmp_path / "in" / file_name)
    index = tokenize(tmp_path / "in", tmp_path / "among", tokenizer_path)
    assert ([source.num_rows for source in index.sources][1], len(index.sources)) == (1, 2)


@pytest.mark.slow
def test_a_huge_line_comes_back_whole(real_texts, tokenizer_path, tmp_path):
    huge = "".join(islice(cycle(real_texts), 4000))[:20_000_000]
    write_jsonl(tmp_path / "in/a.jsonl.zst", ["a", huge, "b"], frames=5)
    tokenize(tmp_path / "in", tmp_path / "out", tokenizer_path)
    tokenizer = plain_tokenizer(tmp_path / "out")
    texts = [tokenizer.decode(ids[:-1], skip_special_tokens=False) for _, _, ids in dataset_rows(tmp_path / "out")]
    assert texts == ["a", huge, "b"]


def test_the_kind_of_file_does_not_change_a_token(real_texts, tokenizer_path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jsonl, "GROUP_BYTES", 50_000)
    write_parquet(tmp_path / "parquet/2.parquet", real_texts[:100], rows_per_group=25)
    write_parquet(tmp_path / "parquet/10.parquet", real_texts[100:200])
    write_jsonl(tmp_path / "mixed/2.jsonl.zst", real_texts[:100], frames=3)
    write_parquet(tmp_path / "mixed/9.parquet", real_texts[100:150])
    write_jsonl(tmp_path / "mixed/10.jsonl", real_texts[150:200])
    tokenize(tmp_path / "parquet", tmp_path / "one", tokenizer_path)
    capsys.readouterr()
    index = tokenize(tmp_path / "mixed", tmp_path / "two", tokenizer_path)
    assert capsys.readouterr().out.startswith(
        "reading 2 files of JSON lines (0.00 GB) once to count their rows\nfound 3 "
    )
    assert sum(shard.source == 0 for shard in index.shards) > 1
    one, two = dataset_rows(tmp_path / "one"), dataset_rows(tmp_path / "two")
    assert [ids for _, _, ids in two] == [ids for _, _, ids in one]
    assert [(path, row) for path, row, _ in two] == [
        (path, row) for path, rows in (("2.jsonl.zst", 100), ("9.parquet", 50), ("10.jsonl", 50)) for row in range(rows)
    ]


def test_a_tokenizer_is_trained_on_json_lines_as_on_parquet(real_texts, tmp_path):
    write_parquet(tmp_path / "parquet/a.parquet", real_texts[:100])
    write_jsonl(tmp_path / "jsonl/a.jsonl.zst", real_texts[:100])
    for name in ("parquet", "jsonl"):
        assert main(["tokenizer", str(tmp_path / name), str(tmp_path / f"{name}.json"), "--vocab-size", "400"]) == 0
    assert (tmp_path / "jsonl.json").read_bytes() == (tmp_path / "parquet.json").read_bytes()


def test_files_without_documents_among_others_are_in_the_index(bad_data, tokenizer_path, tmp_path):
    for name in ("all_null_texts", "zero_rows", "zero_row_groups", "text_only"):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(bad_data / f"{name}.parquet", tmp_path / "in")
    index = tokenize(tmp_path / "in", tmp_path / "out", tokenizer_path)
    assert [source.num_rows for source in index.sources] == [50, 240, 0, 0]
    assert {shard.source for shard in index.shards} == {0, 1}
    assert stored_size(index.shards[0].num_tokens, 64) == 1
    check_exactly_once(tmp_path / "out", [None] * 50 + read_column(bad_data / "text_only.parquet"), 64)


def test_the_column_can_be_named(bad_data, tokenizer_path, tmp_path):
    path = bad_data / "text_column_renamed.parquet"
    tokenize(path, tmp_path / "out", tokenizer_path, text_column="content")
    check_exactly_once(tmp_path / "out", read_column(path, "content"), 64)


def test_the_bytes_do_not_depend_on_when_or_where_they_are_made(small_input, small_tokens, tokenizer_path, tmp_path):
    shutil.copytree(small_input, tmp_path / "elsewhere")
    tokenize(tmp_path / "elsewhere", tmp_path / "out", tokenizer_path)
    assert contents(tmp_path / "out") == contents(small_tokens)


def test_a_killed_build_continues_to_the_same_bytes_and_keeps_finished_shards(
    real_data, tokenizer_path, tmp_path, real_texts
):
    for number in (2, 10):
        write_parquet(tmp_path / f"in/{number}.parquet", real_texts * 8, rows_per_group=200)
    options = ("--tokenizer", tokenizer_path, "--chunk-length", 64, "--shard-megabytes", 0.1, *SLOWLY)
    process = start_cli("preprocess", "tokenize", tmp_path / "in", tmp_path / "out", *options)
    while len(list((tmp_path / "out").glob("[0-9]*.json"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out/index.json").exists()
    (tmp_path / "out/00007.npy.tmp").write_bytes(b"half of a shard")  # as a kill inside a write leaves it
    time.sleep(0.5)  # the workers end when they notice
    shards = [path.name.removesuffix(".json") for path in (tmp_path / "out").glob("[0-9]*.json")]
    assert 3 <= len(shards) < 32
    finished = {path: path.stat().st_mtime_ns for shard in shards for path in (tmp_path / "out").glob(f"{shard}.*")}
    assert len(finished) >= 3 * len(shards)
    resumed = run_cli("preprocess", "tokenize", tmp_path / "in", tmp_path / "out", *options)
    assert resumed.returncode == 0, resumed.stderr
    assert "shards are already there: writing the others" in resumed.stdout
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    straight = run_cli("preprocess", "tokenize", tmp_path / "in", tmp_path / "straight", *options)
    assert straight.returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "straight")


def test_an_interrupted_build_says_how_to_continue(tokenizer_path, tmp_path, real_texts):
    write_parquet(tmp_path / "in/a.parquet", real_texts * 6, rows_per_group=100)
    options = ("--tokenizer", tokenizer_path, "--shard-megabytes", 0.1, *SLOWLY)
    process = start_cli("preprocess", "tokenize", tmp_path / "in", tmp_path / "out", *options)
    while not list((tmp_path / "out").glob("[0-9]*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.endswith("interrupted: run the same command again to continue\n")
    assert "Traceback" not in error


def test_a_finished_dataset_is_recognised(small_input, small_tokens, tokenizer_path, tmp_path, capsys):
    shutil.copytree(small_tokens, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    tokenize(small_input, tmp_path / "out", tokenizer_path)
    assert "is complete: nothing to do" in capsys.readouterr().out
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.name != ".lock"}
    assert after == {path: when for path, when in before.items() if path.name != ".lock"}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"chunk_length": 17}, "chunk length: found 64, wanted 17"),
        ({"shard_bytes": 5}, "shard bytes: found 100000, wanted 5"),
        ({"text_column": "id"}, "text column: found text, wanted id"),
        ({"end": "e"}, "end-of-document id: found 0, wanted "),
        ({"data": "000_00009.parquet"}, "inputs: found 2 files with 400 rows, sha256 "),
    ],
)
def test_other_settings_are_refused_and_nothing_is_touched(
    small_input, small_tokens, tokenizer_path, tmp_path, finished, options, difference
):
    shutil.copytree(small_tokens, tmp_path / "out")
    if not finished:
        for name in ("index.json", "00001.json"):
            (tmp_path / "out" / name).unlink()
    before = contents(tmp_path / "out")
    data, end = small_input / options.get("data", ""), options.get("end")
    options = {name: value for name, value in options.items() if name not in ("data", "end")}
    tokenizer = TokenizerSettings(str(tokenizer_path), end)
    values = {"chunk_length": 64, "shard_bytes": 100_000, **options}
    with pytest.raises(ConfigError, match="out was built otherwise: ") as caught:
        build(str(data), tmp_path / "out", BuildSettings(**values), tokenizer)
    assert difference in str(caught.value)
    assert "give it the same input and options, or name another directory" in str(caught.value)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("left", [None, ["tokenizer.json"]])
def test_another_tokenizer_is_refused_from_the_first_moment_on(
    small_input, small_tokens, tokenizer_path, tmp_path, left
):
    (tmp_path / "out").mkdir()
    for name in left or [path.name for path in small_tokens.iterdir()]:
        shutil.copy(small_tokens / name, tmp_path / "out")
    (tmp_path / "other.json").write_bytes(tokenizer_path.read_bytes() + b"\n")
    before = contents(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"tokenizer: found sha256 \w{12}, wanted sha256 \w{12}: "):
        tokenize(small_input, tmp_path / "out", tmp_path / "other.json")
    assert contents(tmp_path / "out") == before


def test_an_own_tokenizer_is_used_again_unless_a_smaller_one_is_wanted(small_input, small_tokens, tmp_path, capsys):
    shutil.copytree(small_tokens, tmp_path / "out")
    (tmp_path / "out/index.json").unlink()
    (tmp_path / "out/00001.json").unlink()
    build(str(small_input), tmp_path / "out", BuildSettings(64, "text", 100_000), TokenizerSettings())
    out = capsys.readouterr().out
    assert "using the tokenizer that is already there" in out
    assert "training" not in out
    assert contents(tmp_path / "out") == contents(small_tokens)
    with pytest.raises(ConfigError, match=r"vocabulary: found 2,048, wanted 300: leave --vocab-size out"):
        build(str(small_input), tmp_path / "out", BuildSettings(64, "text", 100_000), TokenizerSettings(vocab_size=300))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda directory: (directory / "00001.npy").unlink(), r"writing shard 1 again: .*00001\.npy is missing"),
        (lambda directory: os.truncate(directory / "00001.npy", 200), "writing shard 1 again: .* are wanted"),
        (lambda directory: os.truncate(directory / "00001.documents.npy", 9), "writing shard 1 again: .*documents"),
        (lambda directory: (directory / "00001.json").write_text("{}"), "writing shard 1 again: .*own checksum"),
        (lambda directory: write_sealed(directory / "00001.json", {}), "writing shard 1 again: .* is missing"),
        (lambda directory: (directory / "00001.json").unlink(), "shards are already there: writing the others"),
        (lambda directory: (directory / "index.json").unlink(), "documents, .*; nothing was encoded"),
        (lambda directory: (directory / "tokenizer.json").unlink(), "is complete: nothing to do"),
    ],
)
def test_what_is_missing_or_cut_short_is_made_again_and_nothing_else(
    small_input, small_tokens, tmp_path, tokenizer_path, capsys, damage, told
):
    shutil.copytree(small_tokens, tmp_path / "out")
    damage(tmp_path / "out")
    untouched = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("0000[02]*")}
    tokenize(small_input, tmp_path / "out", tokenizer_path)
    assert re.search(told, capsys.readouterr().out)
    assert contents(tmp_path / "out") == contents(small_tokens)
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched


def test_a_damaged_index_is_reported_and_left_alone(small_input, small_tokens, tmp_path, tokenizer_path):
    shutil.copytree(small_tokens, tmp_path / "out")
    (tmp_path / "out/index.json").write_text("{}")
    with pytest.raises(FormatError, match=r"index\.json does not match its own checksum"):
        tokenize(small_input, tmp_path / "out", tokenizer_path)


def test_a_directory_in_use_is_refused(small_input, tmp_path, tokenizer_path):
    (tmp_path / "out").mkdir()
    with exclusive(tmp_path / "out", "build"):
        done = run_cli("preprocess", "tokenize", small_input, tmp_path / "out", "--tokenizer", tokenizer_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"is in use by another build (process {os.getpid()} on " in done.stderr
    with pytest.raises(UserError), exclusive(tmp_path / "out", "build"):
        tokenize(small_input, tmp_path / "out", tokenizer_path)


def test_a_directory_of_other_things_and_a_file_are_refused(small_input, tmp_path, tokenizer_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.doc").write_text("mine")
    with pytest.raises(
        ConfigError, match=r"is not empty and is no token dataset \(it holds thesis\.doc\): name another"
    ):
        tokenize(small_input, tmp_path / "out", tokenizer_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.doc"]
    with pytest.raises(ConfigError, match=r"thesis\.doc is a file: name a directory"):
        tokenize(small_input, tmp_path / "out/thesis.doc", tokenizer_path)


def test_an_input_mistake_leaves_no_directory_behind(tmp_path, tokenizer_path, small_input):
    with pytest.raises(InputError, match="not found"):
        tokenize(tmp_path / "nowhere", tmp_path / "out", tokenizer_path)
    with pytest.raises(InputError, match="cannot be read"):
        tokenize(small_input, tmp_path / "out", tmp_path / "nowhere.json")
    assert list(tmp_path.iterdir()) == []


class WrongEngine(ReferenceEngine):
    """An engine that gives an id that the tokenizer does not have."""

    def encode(self, texts):
        ids, lengths = super().encode(texts)
        return ids + 70_000, lengths


def test_an_id_outside_the_vocabulary_is_an_error_and_does_not_wrap(small_input, tmp_path, tokenizer_path):
    tokenizer = load_tokenizer(tokenizer_path, None)
    plan = make_plan(
        [read_footer(small_input / "000_00009.parquet", small_input, "text")], BuildSettings(), tokenizer.identity
    )
    engines = Engines(tokenizer, kinds=())
    engines.reference = WrongEngine(tokenizer.tokenizer)
    with pytest.raises(InputError, match=r"^shard 0 gave id 7\d,\d{3} where ids below 2,048 are wanted: the tok"):
        write_shard(tmp_path, small_input, plan, 0, engines=engines, selector=ALL, report=lambda size, tokens: None)
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_changed_after_planning_is_refused(tmp_path, tokenizer_path):
    tokenizer = load_tokenizer(tokenizer_path, None)
    path = write_parquet(tmp_path / "in/a.parquet", ["a", "b", "c"])
    plan = make_plan([read_footer(path, tmp_path / "in", "text")], BuildSettings(), tokenizer.identity)
    write_parquet(path, ["a"])
    with pytest.raises(InputError, match=r"gave 1 rows where its footer promised 3: it changed or is damaged"):
        write_shard(
            tmp_path, tmp_path / "in", plan, 0, engines=Engines(tokenizer), selector=ALL, report=lambda *_: None
        )


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_json_lines_that_changed_after_planning_are_refused(tmp_path, tokenizer_path, name):
    tokenizer = load_tokenizer(tokenizer_path, None)
    path = write_jsonl(tmp_path / name, ["a", "b", "c"])
    plan = make_plan([read_footer(path, tmp_path, "text")], BuildSettings(), tokenizer.identity)
    for texts, message in (
        (["a"], "gave 1 rows where its first reading promised 3: it changed or is damaged; run again with a whole"),
        (["a", "b", "other"], "has .* bytes and had .* when it was planned: it changed; run again with a whole file"),
    ):
        write_jsonl(path, texts)
        with pytest.raises(InputError, match=message):
            write_shard(tmp_path, tmp_path, plan, 0, engines=Engines(tokenizer), selector=ALL, report=lambda *_: None)


def test_a_sealed_file_that_is_no_receipt_is_refused(tmp_path):
    write_sealed(tmp_path / "00000.json", {"a": 1})
    with pytest.raises(FormatError, match="is not a receipt of this release"):
        receipt_settings(tmp_path / "00000.json")


def test_a_large_vocabulary_is_stored_in_uint32(small_input, tmp_path, tokenizer_path):
    import json

    document = json.loads(tokenizer_path.read_bytes())
    document["added_tokens"].append({**document["added_tokens"][0], "id": 70_000, "content": "<|far|>"})
    document["model"]["vocab"]["<|far|>"] = 70_000
    (tmp_path / "large.json").write_text(json.dumps(document))
    path = small_input / "000_00009.parquet"
    build(str(path), tmp_path / "out", BuildSettings(64), TokenizerSettings(str(tmp_path / "large.json"), "<|far|>"))
    index = read_index(tmp_path / "out")
    assert (index.dtype, index.tokenizer.end_of_document_id) == ("uint32", 70_000)
    tokens = open_tokens(tmp_path / "out", index, 0)
    assert tokens.dtype == TOKEN_DTYPES["uint32"]
    assert int((np.asarray(tokens) == 70_000).sum()) == index.shards[0].num_documents + index.shards[0].num_padding


def test_the_command_says_what_it_found_and_made(small_input, tmp_path):
    done = run_cli("preprocess", "tokenize", small_input, tmp_path / "out", "--vocab-size", 600, "--chunk-length", 32)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("found 2 files, 400 rows, ")
    assert lines[0].endswith("in natural order: 000_00009.parquet ... 000_00010.parquet")
    assert lines[1].startswith("training a tokenizer with 600 entries on ")
    for word in ("documents", "tokens", "chunks of 32", "bytes per token", "MB/s", "fingerprint"):
        assert word in lines[-1]


@pytest.mark.parametrize(
    "arguments", [[], ["only-data"], ["data", "tokens", "--chunk-length", "many"], ["a", "b", "--no"]]
)
def test_options_that_make_no_sense_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["tokenize", *arguments])
    assert caught.value.code == 2


def test_progress_is_one_plain_line_per_interval_without_a_terminal(capsys):
    with Progress(4, 8_000_000, num_done=1, bytes_done=2_000_000, interval_s=0.0) as progress:
        assert progress.line().endswith("time left unknown")
        progress.add(2_000_000, 500)
        progress.finish_shard()
        progress.add(0, 1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("shards 1/4, text 4.0/8.0 MB, ")
    assert lines[1].startswith("shards 2/4, text 4.0/8.0 MB, ")
    assert "501 new tokens, 0:00:00 left" in lines[1]
    with Progress(1, 1, 0, 0) as progress:
        progress.add(1, 1)
    assert capsys.readouterr().err == ""


def test_what_a_lost_worker_had_counted_is_taken_back():
    progress = Progress(1, 100, 0, 0)
    progress.add(60, 7)
    progress.add(-60, -7)
    assert (progress.new_bytes, progress.new_tokens, progress.speed) == (0, 0, 0)
    assert progress.line().endswith("time left unknown")


def test_ids_of_an_empty_batch_are_accepted(tokenizer_path):
    ids, lengths = ReferenceEngine(load_tokenizer(tokenizer_path, None).tokenizer).encode(
        pa.array([], pa.large_string())
    )
    assert (len(ids), len(lengths)) == (0, 0)
