"""Rows that are filtered out, duplicates and the validation split, through real builds."""

import json
import os
import shutil
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.__main__ import main
from preprocess.build import build, find_duplicates
from preprocess.config import BuildSettings, EngineSettings, Execution, TokenizerSettings
from preprocess.digests import is_drawn, text_digests
from preprocess.duplicates import DigestJob, join_digests, undigested
from preprocess.plan import make_plan
from preprocess.sources import read_footer
from preprocess.tokenizer import load_tokenizer
from preprocess.verify import verify
from shared.errors import ConfigError, FormatError, InputError
from shared.format import Selection, read_index
from tests.helpers import await_that, contents, dataset_rows, plain_tokenizer, run_cli, start_cli

LANGUAGES = ("en", "de", None)
SHARD_BYTES = 40_000


def write_rows(path, texts, start=0, rows_per_group=20, **others):
    """A parquet file of texts with a language, a score and the number of GPT-2's ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(start, start + len(texts))
    columns = {
        "text": pa.array(texts, pa.string()),
        "language": [LANGUAGES[number % 3] for number in numbers],
        "score": [number % 10 / 10 for number in numbers],
        **others,
    }
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)


@pytest.fixture(scope="module")
def texts(real_texts):
    """120 texts of which some are null, empty or the same as earlier ones, in two files' order."""
    texts = [text[:3000] for text in real_texts[:120]]
    texts[5], texts[17] = None, ""
    texts[30], texts[31], texts[70], texts[119] = texts[2], texts[2], texts[40], texts[2]
    return texts


@pytest.fixture(scope="module")
def data(texts, tmp_path_factory):
    directory = tmp_path_factory.mktemp("rows")
    write_rows(directory / "a.parquet", texts[:70])
    write_rows(directory / "b.parquet", texts[70:], start=70)
    return directory


def built(data, directory, tokenizer_path, execution=None, **selection):
    settings = BuildSettings(64, shard_bytes=SHARD_BYTES, selection=Selection(**selection))
    execution = execution or Execution(engines=EngineSettings("tokenizers"))
    return build(str(data), directory, settings, TokenizerSettings(str(tokenizer_path)), execution)


def documents(directory):
    """The texts of a dataset, decoded, with where they are from."""
    tokenizer = plain_tokenizer(directory)
    rows = [(source, row, ids) for source, row, ids in dataset_rows(directory) if ids]
    return {(source, row): tokenizer.decode(ids[:-1]) for source, row, ids in rows}


def expected(texts, keep):
    """The rows that have a text and are kept by `keep(number, text)`."""
    places = [("a.parquet", row) if row < 70 else ("b.parquet", row - 70) for row in range(len(texts))]
    return {
        place: text for number, (place, text) in enumerate(zip(places, texts, strict=True)) if text and keep(number)
    }


def language(number):
    return LANGUAGES[number % 3]


@pytest.mark.parametrize(
    ("where", "keep"),
    [
        ('language == "en"', lambda n, _: language(n) == "en"),
        ("language.is_null() or score >= 0.8", lambda n, _: language(n) is None or n % 10 >= 8),
        ("text.str.len_bytes() > 500", lambda _, text: len(text.encode()) > 500),
    ],
)
def test_exactly_the_rows_that_meet_the_condition_are_documents(data, texts, tokenizer_path, tmp_path, where, keep):
    index = built(data, tmp_path / "out", tokenizer_path, where=where)
    wanted = expected(texts, lambda number: keep(number, texts[number]))
    assert documents(tmp_path / "out") == wanted
    total = {name: sum(getattr(shard, name) for shard in index.shards) for name in ("num_rows", "num_filtered")}
    assert total == {"num_rows": 120, "num_filtered": 118 - len(wanted)}
    size = {name: sum(getattr(shard, name) for shard in index.shards) for name in ("read_bytes", "rejected_bytes")}
    assert size["read_bytes"] == sum(len((text or "").encode()) for text in texts)
    assert size["read_bytes"] - size["rejected_bytes"] == sum(len(text.encode()) for text in wanted.values())
    verify(tmp_path / "out")


def test_of_equal_texts_the_first_that_is_wanted_is_kept(data, texts, tokenizer_path, tmp_path):
    index = built(data, tmp_path / "out", tokenizer_path, drop_duplicates=True)
    repeats = {30, 31, 70, 119}
    assert documents(tmp_path / "out") == expected(texts, lambda number: number not in repeats)
    assert sum(shard.num_duplicate for shard in index.shards) == len(repeats)
    assert not list((tmp_path / "out").glob("*.digests.npy"))
    (tmp_path / "out/00001.digests.npy").write_bytes(b"")  # as a kill leaves it that came between the list and the rest
    built(data, tmp_path / "out", tokenizer_path, drop_duplicates=True)
    assert not list((tmp_path / "out").glob("*.digests.npy"))
    built(data, tmp_path / "filtered", tokenizer_path, where="language.is_null()", drop_duplicates=True)
    wanted = expected(texts, lambda n: language(n) is None and n not in {119})  # 2 and 119 of the four are asked for
    assert documents(tmp_path / "filtered") == wanted


def test_every_text_is_in_one_of_the_two_splits_and_each_has_its_index(data, texts, tokenizer_path, tmp_path):
    share = 0.3
    index = built(data, tmp_path / "out", tokenizer_path, validation_share=share)
    drawn = is_drawn(text_digests(pa.array([text or "" for text in texts], pa.large_string())), share)
    assert documents(tmp_path / "out") == expected(texts, lambda number: not drawn[number])
    assert documents(tmp_path / "out/validation") == expected(texts, lambda number: drawn[number])
    held_out = read_index(tmp_path / "out/validation")
    assert (index.selection.split, held_out.selection.split) == ("train", "validation")
    assert sum(shard.num_other_split for shard in index.shards) == sum(shard.num_documents for shard in held_out.shards)
    assert held_out.tokenizer == index.tokenizer
    verify(tmp_path / "out")
    verify(tmp_path / "out/validation")


def test_a_share_without_a_text_says_so(data, tokenizer_path, tmp_path):
    with pytest.raises(InputError, match=r"^no documents: no text was drawn for validation; give a larger --valid"):
        built(data, tmp_path / "out", tokenizer_path, validation_share=1e-12)
    assert (tmp_path / "out/index.json").exists()  # that for training is whole


def test_a_condition_that_no_row_meets_says_so(data, tokenizer_path, tmp_path):
    with pytest.raises(InputError, match=r"^no documents: every row is null, empty or left out by --where; ask for"):
        built(data, tmp_path / "out", tokenizer_path, where='language == "xx"')


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"where": 'language == "de"'}, 'where: found language == "en", wanted language == "de"'),
        ({}, 'where: found language == "en", wanted any row'),
        ({"where": 'language == "en"', "drop_duplicates": True}, "duplicates: found kept, wanted dropped"),
        ({"where": 'language == "en"', "validation_share": 0.5}, "split: found none, wanted train, 0.5 is validation"),
    ],
)
def test_another_selection_is_another_dataset(data, tokenizer_path, tmp_path, other, message):
    built(data, tmp_path / "out", tokenizer_path, where='language == "en"')
    before = contents(tmp_path / "out")
    with pytest.raises(ConfigError) as caught:
        built(data, tmp_path / "out", tokenizer_path, **other)
    assert message in str(caught.value)
    assert contents(tmp_path / "out") == before


ALL = {"where": 'language.fill_null("en") != "de"', "drop_duplicates": True, "validation_share": 0.2}
OPTIONS = ("--where", ALL["where"], "--drop-duplicates", "--validation-share", 0.2)
SHARDS = ("--chunk-length", 64, "--shard-megabytes", SHARD_BYTES / (1 << 20), "--engine", "tokenizers")


@pytest.fixture(scope="module")
def straight(data, tokenizer_path, tmp_path_factory):
    directory = tmp_path_factory.mktemp("straight") / "out"
    built(data, directory, tokenizer_path, **ALL)
    return directory


def everything(directory):
    return contents_of_files(directory) | {
        f"validation/{name}": file for name, file in contents_of_files(directory / "validation").items()
    }


def contents_of_files(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file() and not p.name.startswith(".lock")}


@pytest.mark.slow
def test_workers_parts_and_kills_give_the_same_bytes(data, straight, tokenizer_path, tmp_path):
    arguments = ("--tokenizer", tokenizer_path, *SHARDS, *OPTIONS)
    out = tmp_path / "workers"
    process = start_cli("preprocess", "tokenize", data, out, *arguments, "--workers", 2)
    await_that(lambda: list(out.glob("*.digests.npy")) or (out / "duplicates.json").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert run_cli("preprocess", "tokenize", data, out, *arguments, "--workers", 2).returncode == 0
    assert everything(out) == everything(straight)

    parts = tmp_path / "parts"
    refused = run_cli("preprocess", "tokenize", data, parts, *arguments, "--workers", 1, "--part", "1/2")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "has no list of duplicates yet, and a part of a build never makes one: run " in refused.stderr
    listing = [arguments[i] for i in range(len(arguments)) if arguments[i] not in ("--engine", "tokenizers")]
    assert run_cli("preprocess", "duplicates", data, parts, *listing).returncode == 0
    for part in ("2/2", "1/2"):
        done = run_cli("preprocess", "tokenize", data, parts, *arguments, "--workers", 1, "--part", part)
        assert done.returncode == 0, done.stderr
    assert everything(parts) == everything(straight)
    (parts / "index.json").unlink()
    (parts / "validation/index.json").unlink()
    assert run_cli("preprocess", "finish", data, parts, *listing).returncode == 0
    assert everything(parts) == everything(straight)


def test_a_build_that_is_repeated_changes_nothing(data, straight, tokenizer_path, capsys):
    before = everything(straight)
    assert built(data, straight, tokenizer_path, **ALL) == read_index(straight)
    assert capsys.readouterr().out.count("is complete: nothing to do") == 2
    assert everything(straight) == before


def test_inspect_says_what_was_left_out_and_why(straight, capsys):
    assert main(["inspect", str(straight), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    totals = document["totals"]
    assert totals["num_filtered"] > 0 < totals["num_duplicate"]
    assert totals["num_other_split"] > 0
    assert sum(source["num_filtered"] for source in document["sources"]) == totals["num_filtered"]
    assert main(["inspect", str(straight)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{totals['num_filtered']:,} filtered, {totals['num_duplicate']:,} duplicate, " in shown
    assert 'where language.fill_null("en") != "de"; duplicates dropped; train, 0.2 is validation' in shown


def test_a_tokenizer_is_trained_on_the_rows_that_are_documents(data, tmp_path):
    from tokenizers import Tokenizer

    arguments = ["--vocab-size", "600", "--where", 'language == "de"']
    assert main(["tokenizer", str(data), str(tmp_path / "de.json"), *arguments]) == 0
    assert main(["tokenize", str(data), str(tmp_path / "out"), *arguments]) == 0
    found = Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")).get_vocab()
    assert found == Tokenizer.from_file(str(tmp_path / "de.json")).get_vocab()
    assert main(["tokenizer", str(data), str(tmp_path / "all.json"), *arguments[:2]]) == 0
    assert found != Tokenizer.from_file(str(tmp_path / "all.json")).get_vocab()


# duplicates


def digested(data, directory, tokenizer_path, **settings):
    """The plan of `data`, the digests of whose shards are in `directory`."""
    directory.mkdir()
    identity = load_tokenizer(tokenizer_path, None).identity
    footers = [read_footer(path, data, "text") for path in sorted(data.glob("*.parquet"))]
    plan = make_plan(footers, BuildSettings(shard_bytes=SHARD_BYTES, **settings), identity)
    write = DigestJob(directory, data, plan).open()
    for shard in plan.shards:
        write(shard.number, lambda *_: None)
    assert undigested(directory, plan) == []
    return plan


@pytest.mark.parametrize("max_bytes", [1 << 30, 1000, 24])
def test_the_list_does_not_depend_on_how_much_is_sorted_at_once(data, tokenizer_path, tmp_path, max_bytes):
    plan = digested(data, tmp_path / "out", tokenizer_path)
    assert join_digests(tmp_path / "out", plan, max_bytes) == 4
    assert np.load(tmp_path / "out/duplicates.npy").tolist() == [30, 31, 70, 119]


def test_digests_that_are_cut_short_are_made_again(data, tokenizer_path, tmp_path):
    plan = digested(data, tmp_path / "out", tokenizer_path)
    path = tmp_path / "out/00001.digests.npy"
    path.write_bytes(path.read_bytes()[:-8])
    (tmp_path / "out/00002.digests.npy").unlink()
    assert undigested(tmp_path / "out", plan) == [1, 2]


def test_a_damaged_list_is_refused_by_name(data, tokenizer_path, tmp_path, capsys):
    built(data, tmp_path / "out", tokenizer_path, drop_duplicates=True)
    shutil.copytree(tmp_path / "out", tmp_path / "whole")
    (tmp_path / "out/index.json").unlink()
    (tmp_path / "out/00000.json").unlink()
    for path in (tmp_path / "out/duplicates.npy", tmp_path / "whole/duplicates.npy"):
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert main(["verify", str(tmp_path / "whole")]) == 2
    assert "whole/duplicates.npy does not match its checksum: delete it and duplicates.json" in capsys.readouterr().out
    with pytest.raises(FormatError, match=r"duplicates.npy does not match its checksum: delete it and duplicates.json"):
        built(data, tmp_path / "out", tokenizer_path, drop_duplicates=True)


def test_a_file_that_is_left_out_makes_no_text_of_another_a_duplicate(texts, tokenizer_path, tmp_path):
    write_rows(tmp_path / "in/a.parquet", texts[:70])
    write_rows(tmp_path / "in/b.parquet", texts[:70])
    damaged = bytearray((tmp_path / "in/a.parquet").read_bytes())
    damaged[2000:2200] = bytes(200)
    (tmp_path / "in/a.parquet").write_bytes(damaged)
    settings = BuildSettings(64, shard_bytes=SHARD_BYTES, on_bad_file="skip", selection=Selection(drop_duplicates=True))
    execution = Execution(engines=EngineSettings("tokenizers"))
    index = build(str(tmp_path / "in"), tmp_path / "out", settings, TokenizerSettings(str(tokenizer_path)), execution)
    assert [source.path for source in index.skipped] == ["a.parquet"]
    repeats = {30, 31}
    kept = {("b.parquet", n): text for n, text in enumerate(texts[:70]) if text and n not in repeats}
    assert documents(tmp_path / "out") == kept


def test_duplicates_are_found_before_a_build_in_parts(data, tokenizer_path, tmp_path, capsys):
    settings = BuildSettings(64, shard_bytes=SHARD_BYTES, selection=Selection(drop_duplicates=True))
    for told in ("looking for duplicates among 120 rows\n4 rows repeat an earlier one\n", ""):
        find_duplicates(str(data), tmp_path / "out", settings, TokenizerSettings(str(tokenizer_path)), Execution())
        out = capsys.readouterr().out
        assert out.endswith(told) if told else "looking" not in out


# --token-counts


def counted(path, texts, tokenizer_path, change):
    counts = [len(load_tokenizer(tokenizer_path, None).tokenizer.encode(text or "").ids) for text in texts]
    write_rows(path, texts, token_count=change(counts))


def test_known_token_counts_that_agree_are_kept_in_the_receipts(texts, tokenizer_path, tmp_path):
    counted(tmp_path / "a.parquet", texts[:40], tokenizer_path, lambda counts: pa.array(counts, pa.int32()))
    execution = Execution(engines=EngineSettings(token_counts="token_count"))
    built(tmp_path / "a.parquet", tmp_path / "out", tokenizer_path)
    receipt = tmp_path / "out/00000.json"
    assert json.loads(receipt.read_bytes())["token_counts"] is None
    built(tmp_path / "a.parquet", tmp_path / "out", tokenizer_path, execution)  # not compared before: made again
    assert json.loads(receipt.read_bytes())["token_counts"] == "token_count"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda counts: [*counts[:33], counts[33] + 1, *counts[34:]], "row 33 has token_count {plus} and {right} ids"),
        (lambda counts: [*counts[:33], None, *counts[34:]], "row 33 has token_count None and {right} ids"),
    ],
)
def test_another_count_is_one_line_that_names_the_row(texts, tokenizer_path, tmp_path, change, reason):
    counted(tmp_path / "a.parquet", texts[:40], tokenizer_path, change)
    right = len(load_tokenizer(tokenizer_path, None).tokenizer.encode(texts[33]).ids)
    execution = Execution(engines=EngineSettings(token_counts="token_count"))
    with pytest.raises(InputError) as caught:
        built(tmp_path / "a.parquet", tmp_path / "out", tokenizer_path, execution)
    told = f"a.parquet: {reason.format(plus=right + 1, right=f'{right:,}')}: give the tokenizer that counted, or leave"
    assert told in str(caught.value)


def test_counts_that_are_no_numbers_are_one_line(data, tokenizer_path, tmp_path):
    execution = Execution(engines=EngineSettings(token_counts="language"))
    with pytest.raises(InputError, match=r"^--token-counts names a column of string: name one that holds numbers$"):
        built(data, tmp_path / "out", tokenizer_path, execution)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--where", "no_such > 1"), "has no column 'no_such'"),
        (("--where", "score"), "--where 'score' does not fit the columns: it gives Float64, not true or false"),
        (("--where", "score ="), "--where 'score =' is not understood: it is no expression"),
        (("--validation-share", "1"), "--validation-share is 1: 0 to below 1 is wanted"),
        (("--validation-share", "-0.1"), "--validation-share is -0.1: 0 to below 1 is wanted"),
        (("--token-counts", "no_such"), "has no column 'no_such'"),
    ],
)
def test_what_cannot_be_selected_is_one_line_before_anything_is_written(
    data, tokenizer_path, tmp_path, capsys, options, message
):
    arguments = ["tokenize", str(data), str(tmp_path / "out"), "--tokenizer", str(tokenizer_path)]
    assert main([*arguments, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
