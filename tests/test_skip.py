import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.__main__ import main
from preprocess.build import build
from preprocess.config import BuildSettings, Execution, TokenizerSettings, parse_part
from shared.errors import ConfigError, FormatError, InputError
from shared.format import SkippedSource, read_index
from shared.storage import read_sealed, write_sealed
from tests import jsonl_cases
from tests.helpers import contents, dataset_rows, plain_tokenizer, write_jsonl, write_parquet

SKIP = BuildSettings(64, "text", 3000, "skip")
STOP = BuildSettings(64, "text", 3000)
GOOD = {"a.parquet": "a good text", "d.parquet": "another good text"}


def write_damaged(path, groups):
    """A parquet file of 6 row groups (2 shards) of which some have a damaged page."""
    table = pa.table({"text": [f"some words {i}" for i in range(600)]})
    pq.write_table(table, path, row_group_size=100, compression="none", use_dictionary=False, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    for group in groups:
        data[data.index(f"some words {100 * group + 50}".encode())] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two good files, one without a footer and one with damage in two of its shards."""
    directory = tmp_path_factory.mktemp("mixed")
    for name, text in GOOD.items():
        write_parquet(directory / name, [f"{text} {i}" for i in range(300)])
    (directory / "b.parquet").write_bytes((directory / "a.parquet").read_bytes()[:-3])
    write_damaged(directory / "c.parquet", [1, 4])
    return directory


@pytest.fixture(scope="module")
def tokens(data, tokenizer_path, tmp_path_factory):
    directory = tmp_path_factory.mktemp("skipped") / "tokens"
    build(str(data), directory, SKIP, TokenizerSettings(str(tokenizer_path)))
    return directory


def run(data, out, settings, tokenizer_path, execution=None):
    return build(str(data), out, settings, TokenizerSettings(str(tokenizer_path)), execution or Execution())


def test_bad_files_are_left_out_whole_and_named_with_their_first_damage(data, tokens):
    index = read_index(tokens)
    reasons = {source.path: source.reason for source in index.skipped}
    assert list(reasons) == ["b.parquet", "c.parquet"]
    assert reasons["b.parquet"].startswith("is cut short (no parquet footer at the end of ")
    assert reasons["c.parquet"].startswith("row group 1 cannot be read (")
    assert [source.size_bytes for source in index.skipped] == [(data / path).stat().st_size for path in reasons]
    tokenizer, documents = plain_tokenizer(tokens), dataset_rows(tokens)
    texts = [tokenizer.decode(ids[:-1]) for _, _, ids in documents if ids]
    assert texts == [f"{text} {i}" for text in GOOD.values() for i in range(300)]
    assert sum(path == "c.parquet" for path, _, _ in documents) == 600
    assert {shard.num_skipped for shard in index.shards if index.sources[shard.source].path != "c.parquet"} == {0}
    assert sum(shard.num_skipped for shard in index.shards) == 600
    assert len({shard.first_row_group for shard in index.shards if shard.num_skipped}) > 1


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_what_is_left_out_does_not_depend_on_who_finds_it_first(data, tokens, tokenizer_path, tmp_path, workers):
    run(data, tmp_path / "out", SKIP, tokenizer_path, Execution(workers))
    assert contents(tmp_path / "out") == contents(tokens)


@pytest.mark.parametrize("order", ["12345", "54321"])
def test_parts_leave_out_the_same(data, tokens, tokenizer_path, tmp_path, order):
    for number in order:
        run(data, tmp_path / "out", SKIP, tokenizer_path, Execution(part=parse_part(f"{number}/5")))
    assert contents(tmp_path / "out") == contents(tokens)


def test_a_build_continues_with_the_same_decision(data, tokens, tokenizer_path, tmp_path):
    shutil.copytree(tokens, tmp_path / "out")
    damaged = [i for i, shard in enumerate(read_index(tokens).shards) if shard.num_skipped]
    for name in ("index.json", f"{damaged[0]:05d}.json", "00000.json"):
        (tmp_path / "out" / name).unlink()
    run(data, tmp_path / "out", SKIP, tokenizer_path)
    assert contents(tmp_path / "out") == contents(tokens)


def test_the_usual_is_to_stop(data, tokenizer_path, tmp_path):
    with pytest.raises(InputError, match=r"b\.parquet is cut short .*: download it again or move it away"):
        run(data, tmp_path / "out", STOP, tokenizer_path)
    shutil.copytree(data, tmp_path / "in")
    (tmp_path / "in/b.parquet").unlink()
    with pytest.raises(InputError, match=r"c\.parquet: row group 1 cannot be read"):
        run(tmp_path / "in", tmp_path / "out", STOP, tokenizer_path)


def test_a_file_once_left_out_is_tried_again_only_when_that_is_asked_for(data, tokenizer_path, tmp_path):
    shutil.copytree(data, tmp_path / "in")
    (tmp_path / "in/b.parquet").unlink()
    run(tmp_path / "in", tmp_path / "out", SKIP, tokenizer_path)
    with pytest.raises(ConfigError, match=r"was built without 1 input files, the first c\.parquet: give --on-bad-fi"):
        run(tmp_path / "in", tmp_path / "out", STOP, tokenizer_path)
    (tmp_path / "out/index.json").unlink()
    with pytest.raises(InputError, match="row group 1 cannot be read"):
        run(tmp_path / "in", tmp_path / "out", STOP, tokenizer_path)
    write_damaged(tmp_path / "in/c.parquet", [])  # mended: the same file without the damage
    index = run(tmp_path / "in", tmp_path / "out", STOP, tokenizer_path)
    assert (index.skipped, sum(shard.num_documents for shard in index.shards)) == ([], 1200)


def test_an_input_of_bad_files_alone_is_refused(data, tokenizer_path, tmp_path):
    with pytest.raises(InputError, match=r"has no file that can be read, the first is b\.parquet: is cut short .*: na"):
        run(data / "b.parquet", tmp_path / "out", SKIP, tokenizer_path)
    with pytest.raises(InputError, match=r"no documents: .* is null or empty or in a file that cannot be read; name"):
        run(data / "c.parquet", tmp_path / "out", SKIP, tokenizer_path)


def test_what_was_left_out_changes_what_the_dataset_is(data, tokens, tokenizer_path, tmp_path):
    shutil.copytree(data, tmp_path / "in")
    (tmp_path / "in/b.parquet").unlink()
    shutil.copytree(tokens, tmp_path / "out")
    with pytest.raises(ConfigError, match="inputs: found 3 files with 1,200 rows without the skipped, sha256 "):
        run(tmp_path / "in", tmp_path / "out", SKIP, tokenizer_path)
    index = run(tmp_path / "in", tmp_path / "new", SKIP, tokenizer_path)
    assert index.fingerprint != read_index(tokens).fingerprint


def test_inspect_shows_what_was_left_out(tokens, capsys):
    main(["inspect", str(tokens)])
    out = capsys.readouterr().out
    assert "2 input files, with 600 rows that were counted" in out
    assert "b.parquet" in out
    assert "row group 1 cannot be read" in out
    main(["inspect", str(tokens), "--json"])
    assert '"skipped": [{"path": "b.parquet", "size_bytes": ' in capsys.readouterr().out


def test_a_long_list_of_files_left_out_is_cut(tokens, tmp_path, capsys):
    shutil.copytree(tokens, tmp_path / "out")
    document = read_sealed(tmp_path / "out/index.json")
    document["skipped"] = [vars(SkippedSource(f"{i}.parquet", i, "is empty")) for i in range(45)]
    write_sealed(tmp_path / "out/index.json", document)
    main(["inspect", str(tmp_path / "out")])
    assert "... 5 more (all of them with --json)" in capsys.readouterr().out


def test_an_index_from_before_files_could_be_left_out_is_read(small_tokens, tmp_path):
    document = read_sealed(small_tokens / "index.json")
    del document["skipped"]
    del document["shards"]["num_skipped"]
    write_sealed(tmp_path / "index.json", document)
    assert read_index(tmp_path) == read_index(small_tokens)


def test_a_tokenizer_is_trained_on_what_can_be_read(data, tmp_path):
    options = ["--on-bad-file", "skip", "--vocab-size", "300"]
    assert main(["tokenize", str(data), str(tmp_path / "out"), *options]) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_a_receipt_that_does_not_say_why_is_refused(data, tokens, tokenizer_path, tmp_path):
    shutil.copytree(tokens, tmp_path / "out")
    number = next(i for i, shard in enumerate(read_index(tokens).shards) if shard.num_skipped)
    path = tmp_path / f"out/{number:05d}.json"
    write_sealed(path, {key: value for key, value in read_sealed(path).items() if key != "reason"})
    with pytest.raises(FormatError, match="does not say why its input was left out: delete it and run again"):
        run(data, tmp_path / "out", SKIP, tokenizer_path)


def test_every_kind_of_bad_json_lines_file_can_be_left_out(tokenizer_path, tmp_path):
    bad = jsonl_cases.INVALID | {f"far in {name}": case for name, case in jsonl_cases.FAR_IN.items()}
    for name, (file_name, data, _) in bad.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / file_name).write_bytes(data)
    write_jsonl(tmp_path / "in/a.jsonl.zst", ["good"])
    index = run(tmp_path / "in", tmp_path / "out", SKIP, tokenizer_path)
    reasons = {source.path.split("/")[0]: source.reason for source in index.skipped}
    assert sorted(reasons) == sorted(bad)
    assert all(message in reasons[name] for name, (_, _, message) in bad.items())
    assert not any(str(tmp_path) in reason for reason in reasons.values())
    assert {source.path.split("/")[0] for source in index.sources} == {
        "a.jsonl.zst", *(f"far in {name}" for name in jsonl_cases.FAR_IN)
    }  # fmt: skip
    (ids,) = [ids for _, _, ids in dataset_rows(tmp_path / "out") if ids]
    assert plain_tokenizer(tmp_path / "out").decode(ids[:-1]) == "good"


def test_every_kind_of_bad_file_can_be_left_out(bad_data, tokenizer_path, tmp_path):
    from tests.test_sources import INVALID

    for name in [*INVALID, "text_only"]:
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(bad_data / f"{name}.parquet", tmp_path / "in")
    index = run(tmp_path / "in", tmp_path / "out", SKIP, tokenizer_path)
    reasons = {source.path.removesuffix(".parquet"): source.reason for source in index.skipped}
    assert sorted(reasons) == sorted(INVALID)
    assert all(part in reasons[name] for name, part in INVALID.items())
    assert not any(str(tmp_path) in reason for reason in reasons.values())
