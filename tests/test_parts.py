import shutil

import pytest

from preprocess.__main__ import main
from preprocess.build import build, finish
from preprocess.config import BuildSettings, Execution, Part, TokenizerSettings, parse_part
from preprocess.parts import describe_missing, hold, is_ours
from shared.errors import ConfigError, UserError
from tests.helpers import contents, start_cli

SETTINGS = BuildSettings(64, "text", 100_000)  # as `small_tokens` was built
OPTIONS = ("--chunk-length", "64", "--shard-megabytes", str(100_000 / (1 << 20)))


@pytest.fixture
def tokenizer(tokenizer_path):
    return TokenizerSettings(str(tokenizer_path))


def part(data, out, tokenizer, text, settings=SETTINGS):
    return build(str(data), out, settings, tokenizer, Execution(part=parse_part(text)))


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_make_the_bytes_of_a_whole_build_in_any_order(small_input, small_tokens, tokenizer, tmp_path, order):
    for number in order[:-1]:
        assert part(small_input, tmp_path / "out", tokenizer, f"{number}/3") is None
        assert not (tmp_path / "out/index.json").exists()
    assert part(small_input, tmp_path / "out", tokenizer, f"{order[-1]}/3").shards
    assert contents(tmp_path / "out") == contents(small_tokens)


def test_parts_at_the_same_time_make_the_bytes_of_a_whole_build(small_input, small_tokens, tokenizer_path, tmp_path):
    options = ("--tokenizer", tokenizer_path, *OPTIONS, "--workers", 1)
    processes = [
        start_cli("preprocess", "tokenize", small_input, tmp_path / "out", *options, "--part", f"{number}/3")
        for number in (1, 2, 3)
    ]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    assert contents(tmp_path / "out") == contents(small_tokens)


def test_parts_that_end_together_may_both_write_the_index(small_input, small_tokens, tokenizer_path, tmp_path):
    shutil.copytree(small_tokens, tmp_path / "out")
    (tmp_path / "out/index.json").unlink()
    options = ("--tokenizer", tokenizer_path, *OPTIONS)
    processes = [
        start_cli("preprocess", "tokenize", small_input, tmp_path / "out", *options, "--part", f"{number}/4")
        for number in (1, 2, 3, 4)
    ]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, ends
    assert contents(tmp_path / "out") == contents(small_tokens)


def test_a_part_without_a_shard_is_done_at_once(small_input, tokenizer, tmp_path, capsys):
    assert part(small_input, tmp_path / "out", tokenizer, "999/999") is None
    assert "part 999/999 is written; 0 of " in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0"])
def test_a_part_that_does_not_exist_is_refused(text):
    with pytest.raises(ConfigError, match=f"--part is {text}: i/n with i from 1 to n is wanted, for example 2/8"):
        parse_part(text)


@pytest.mark.parametrize("text", ["", "3", "1/", "/3", "a/3", "-1/3", "1/3/5", " 1/3"])
def test_a_part_that_is_no_part_is_refused(text):
    with pytest.raises(ConfigError, match=f"--part is '{text}': i/n with i from 1 to n is wanted, for example 2/8"):
        parse_part(text)


def test_the_command_refuses_a_part_that_is_no_part(small_input, tmp_path, capsys):
    assert main(["tokenize", str(small_input), str(tmp_path / "out"), "--part", "3"]) == 2
    assert "error: --part is '3': " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_shard_is_of_exactly_one_part():
    for count in (1, 2, 7):
        owners = [[n for n in range(1, count + 1) if Part(n, count).owns(shard)] for shard in range(20)]
        assert all(len(numbers) == 1 for numbers in owners)


def test_a_part_never_trains_a_tokenizer(small_input, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="has no tokenizer yet, and a part of a build never trains one: give --tok"):
        part(small_input, tmp_path / "out", TokenizerSettings(), "1/2")
    assert part(small_input, tmp_path / "out", tokenizer, "1/2") is None
    assert part(small_input, tmp_path / "out", TokenizerSettings(), "2/2").shards  # it is already there


def test_a_part_that_is_being_built_is_refused_and_another_is_not(small_input, tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    with hold(tmp_path / "out", Part(1, 3)):
        with pytest.raises(
            UserError, match=r"is in use by another build of part 1/3 \(process \d+ on .*\): wait for it to end"
        ):
            part(small_input, tmp_path / "out", tokenizer, "1/3")
        assert part(small_input, tmp_path / "out", tokenizer, "2/3") is None


def test_a_whole_build_and_parts_never_mix(small_input, tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    with (
        hold(tmp_path / "out", Part(1, 3)),
        pytest.raises(UserError, match=r"is in use by another build \(process \d+ on .*\): wait"),
    ):
        build(str(small_input), tmp_path / "out", SETTINGS, tokenizer)
    with (
        hold(tmp_path / "out", Part(1, 3)),
        pytest.raises(UserError, match=r"is in use by another build \(process \d+ on .*\): wait"),
    ):
        finish(str(small_input), tmp_path / "out", SETTINGS, tokenizer)
    with (
        hold(tmp_path / "out", None),
        pytest.raises(UserError, match=r"is in use by another build \(process \d+ on .*\): wait for it"),
    ):
        part(small_input, tmp_path / "out", tokenizer, "1/3")


def test_a_part_with_other_settings_is_refused(small_input, tokenizer, tmp_path):
    part(small_input, tmp_path / "out", tokenizer, "1/2")
    with pytest.raises(ConfigError, match="was built otherwise: chunk length: found 64, wanted 17: give it the same"):
        part(small_input, tmp_path / "out", tokenizer, "2/2", BuildSettings(17, "text", 100_000))


def test_parts_with_other_settings_that_began_together_are_found_at_the_end(small_input, tokenizer, tmp_path):
    part(small_input, tmp_path / "out", tokenizer, "1/2")
    part(small_input, tmp_path / "other", tokenizer, "2/2", BuildSettings(17, "text", 100_000))
    for path in (tmp_path / "other").glob("[0-9]*"):  # neither had written when the other looked
        shutil.copy(path, tmp_path / "out")
    for go_on in (finish, lambda *arguments: part(arguments[0], arguments[1], tokenizer, "1/2")):
        with pytest.raises(ConfigError, match="was built otherwise: chunk length: found 17, wanted 64"):
            go_on(str(small_input), tmp_path / "out", SETTINGS, tokenizer)
    assert not (tmp_path / "out/index.json").exists()


def test_a_part_removes_what_it_left_half_written_and_nothing_of_the_others(small_input, tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    names = ["00000.npy.0a1b2c3d.tmp", "00001.npy.0a1b2c3d.tmp", "tokenizer.json.0a1b2c3d.tmp"]
    for name in names:
        (tmp_path / "out" / name).touch()
    part(small_input, tmp_path / "out", tokenizer, "1/2")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tmp")) == names[1:]
    build(str(small_input), tmp_path / "out", SETTINGS, tokenizer)
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_finish_writes_the_index_when_every_shard_is_there(small_input, small_tokens, tokenizer_path, tmp_path, capsys):
    shutil.copytree(small_tokens, tmp_path / "out")
    (tmp_path / "out/index.json").unlink()
    assert main(["finish", str(small_input), str(tmp_path / "out"), *OPTIONS]) == 0
    assert contents(tmp_path / "out") == contents(small_tokens)
    assert main(["finish", str(small_input), str(tmp_path / "out"), *OPTIONS]) == 0
    assert "is complete: nothing to do" in capsys.readouterr().out


def test_finish_names_what_is_missing(small_input, small_tokens, tokenizer, tmp_path, capsys):
    part(small_input, tmp_path / "out", tokenizer, "2/3")
    total = len(list(small_tokens.glob("*.documents.npy")))
    missing = [shard for shard in range(total) if shard % 3 != 1]
    assert main(["finish", str(small_input), str(tmp_path / "out"), *OPTIONS]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'out'} is not complete: {total - len(missing)} of {total} shards are ")
    assert f"missing shards {', '.join(map(str, missing))} (parts 1/3, 3/3): run `python -m preprocess tok" in error
    (tmp_path / "out/00001.npy").unlink()
    assert main(["finish", str(small_input), str(tmp_path / "out"), *OPTIONS]) == 2
    captured = capsys.readouterr()
    assert "shard 1 is missing: " in captured.out
    assert "(parts 1/3, 2/3, 3/3)" in captured.err


def test_finish_needs_a_directory_and_a_tokenizer(small_input, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="out not found: name the directory that the parts were written to"):
        finish(str(small_input), tmp_path / "out", SETTINGS, tokenizer)
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="has no tokenizer yet"):
        finish(str(small_input), tmp_path / "out", SETTINGS, TokenizerSettings())


def test_a_long_list_of_missing_shards_is_cut(tmp_path):
    assert describe_missing(tmp_path, [4]) == "shard 4"
    assert describe_missing(tmp_path, range(25)).endswith(", 18, 19 and 5 more")
    (tmp_path / ".lock-1-of-30").touch()
    assert describe_missing(tmp_path, range(25)).endswith(
        "and 5 more (parts " + ", ".join(f"{number}/30" for number in range(1, 21)) + " and 5 more)"
    )
    (tmp_path / ".lock-1-of-2").touch()
    assert describe_missing(tmp_path, [4]) == "shard 4"


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("00007.npy", True),
        ("123456.documents.npy", True),
        ("index.json.0a1b2c3d.tmp", True),
        ("tokenizer.json.tmp", True),
        (".lock", True),
        (".lock-2-of-8", True),
        ("thesis.doc", False),
        ("thesis.doc.tmp", False),
        ("7.npy", False),
    ],
)
def test_only_a_datasets_own_names_are_ours(name, ours):
    assert is_ours(name) == ours
