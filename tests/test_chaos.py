"""Kills, rotten bits and torn files, as `make chaos` has them; and that it tells when something is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from preprocess.build import build
from preprocess.config import BuildSettings, EngineSettings, Execution, PackSettings, TokenizerSettings
from preprocess.pack import pack
from shared.errors import FormatError
from shared.records import Selection
from tests import chaos
from tests.damage import cut, damage_files, flipped
from tests.helpers import REPOSITORY, has_ended
from tests.kills import Command, Result, differences, kill_at_random, trained
from tests.oracle import problems_of
from tests.throwaway import write_input, write_tokenizer


def run_chaos(work, *options) -> dict[str, dict]:
    """What the command's table says, by its first column."""
    command = [sys.executable, "-m", "tests.chaos", "--data-dir", work, "--json", work / "results.json", *options]
    done = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(work.glob("argonne-chaos-*"))
    return {result["name"]: result for result in json.loads((work / "results.json").read_text())}


@pytest.mark.slow
def test_a_build_killed_with_all_its_processes_at_any_moment_ends_as_an_independent_encoder_says(tmp_path):
    results = run_chaos(tmp_path, "--only", "builds", "--kills", 5)
    assert results["build: all processes killed"]["tries"] == 5


@pytest.mark.slow
def test_every_flipped_bit_and_cut_file_of_a_dataset_is_named_with_a_remedy(memory_path):
    results = run_chaos(memory_path, "--only", "bits", "--kills", 5, "--seed", 1)
    assert [result["tries"] for result in results.values()] == [50, 10]


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("part", "kills"), [("builds", 200), ("bits", 50), ("runs", 100)])
def test_chaos_for_long(part, kills, tmp_path):
    results = run_chaos(tmp_path, "--only", part, "--kills", kills, "--seed", 2)
    assert max(result["tries"] for result in results.values()) >= kills


# What watches the others sees what is wrong.


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An input, a tokenizer, and a packed dataset of both."""
    work = tmp_path_factory.mktemp("small")
    data = write_input(work / "in", rows=30)
    tokenizer = write_tokenizer(work / "tokenizer.json", data)
    settings = BuildSettings(32, "text", 6000, selection=Selection(drop_duplicates=True))
    execution = Execution(engines=EngineSettings("tokenizers"))
    build(str(data), work / "tokens", settings, TokenizerSettings(str(tokenizer)), execution)
    pack(work / "tokens", PackSettings(32, workers=1))
    return work


def change(path, alter):
    values = np.load(path)
    np.save(path, alter(values))


def another_id(ids):
    ids[7] += 1
    return ids


def another_start(pieces):
    pieces["start"][0] += 1
    return pieces


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda tokens: change(tokens / "00001.npy", another_id), "00001.npy does not hold the documents of its rows"),
        (lambda tokens: change(tokens / "00000.npy", lambda ids: ids[:-32]), "00000.npy does not hold the documents"),
        (lambda tokens: [path.unlink() for path in tokens.glob("00002.*")], "rows are there"),
        (
            lambda tokens: change(tokens / "packings/best-fit-32/00000.pieces.npy", another_start),
            "the packing of 00000.npy does not hold every target once",
        ),
    ],
)
def test_the_oracle_agrees_with_a_whole_dataset_and_with_no_other(small, tmp_path, harm, told):
    tokens = shutil.copytree(small / "tokens", tmp_path / "tokens")
    assert problems_of(tokens, small / "in", small / "tokenizer.json", 32) == []
    harm(tokens)
    assert any(told in problem for problem in problems_of(tokens, small / "in", small / "tokenizer.json", 32))


def test_a_family_is_killed_whole_whatever_sessions_it_has_made(tmp_path):
    program = (
        "import subprocess, sys, pathlib; child = subprocess.Popen(['sleep', '60'], start_new_session=True);"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid)); child.wait()"
    )
    command = Command(sys.executable, "-c", program)
    end_s = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < end_s
        time.sleep(0.01)
    command.kill()
    assert command.has_ended(0)
    assert has_ended(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("open('a', 'a').write('once')", "after"),  # every start leaves more behind
        ("import time; time.sleep(0.2); raise SystemExit('what a pity')", "exit code 1: what a pity"),
    ],
)
def test_kills_tell_of_what_they_have_changed(tmp_path, program, told):
    made = tmp_path / "a"

    def problems():
        return ["more than once"] if made.exists() and made.read_text() != "once" else []

    program = f"import os, time; os.chdir({str(tmp_path)!r}); {program}; time.sleep(0.5)"
    result = kill_at_random("name", lambda: Command(sys.executable, "-c", program), made.unlink, problems, 6)
    assert any(told in problem for problem in result.problems)


def test_damage_that_is_passed_over_or_told_without_a_name_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"12")

    def dies():
        if (tmp_path / "file").read_bytes() != b"12":
            os.kill(os.getpid(), signal.SIGKILL)

    def mumbles():
        if (tmp_path / "file").read_bytes() != b"12":
            raise FormatError("something is wrong: restore it")

    def tells():
        if (tmp_path / "file").read_bytes() != b"12":
            raise FormatError(f"{tmp_path / 'file'} is wrong: restore it")

    def problems(look):
        return [damage_files("name", tmp_path, look, 3, harm).problems for harm in (flipped, cut)]

    assert problems(tells) == [[], []]
    for look, code in ((lambda: None, 0), (dies, -9), (mumbles, 2)):
        for found in problems(look):
            assert [f"exit code {code}: " in problem for problem in found] == [True] * 3
    assert (tmp_path / "file").read_bytes() == b"12"


def test_what_a_killed_save_has_left_is_no_checkpoint_and_every_byte_of_one_counts(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5, "data_digest": "d"}\n')
    for name in ("step-00000001", "step-00000002.0a1b2c3d.tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        for file in ("__0_0.distcp", ".metadata"):
            (tmp_path / "checkpoints" / name / file).write_text(name)
    before = trained(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/step-00000002.0a1b2c3d.tmp")
    assert trained(tmp_path) == before
    assert before["step 1"] == "2.5 d"
    for file in ("__0_0.distcp", ".metadata"):
        (tmp_path / "checkpoints/step-00000001" / file).write_text("another")
        assert differences(trained(tmp_path), before) == [f"checkpoints/step-00000001/{file} differs"]
        (tmp_path / "checkpoints/step-00000001" / file).write_text("step-00000001")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data-dir", "/no/such"], "--data-dir /no/such is no directory: name one that is there, on the storage to"),
        (["--kills", "0"], "--kills is 0: at least 1 is wanted"),
    ],
)
def test_chaos_that_cannot_be_is_told(monkeypatch, capsys, options, told):
    monkeypatch.setattr(sys, "argv", ["chaos", *options])
    with pytest.raises(SystemExit, match="2"):
        chaos.main()
    assert told in capsys.readouterr().err


def test_chaos_that_found_something_keeps_it_and_exits_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["chaos", "--data-dir", str(tmp_path), "--only", "bits", "--kills", "3"])
    monkeypatch.setattr(chaos.Chaos, "bits", lambda self: [Result("a fault", 1200, ["lost it"], "bytes")])
    assert chaos.main() == 1
    (kept,) = tmp_path.glob("argonne-chaos-*")
    out = capsys.readouterr().out
    assert "a fault   1,200       1" in out
    assert "WRONG: lost it" in out
    assert f"{kept} has what was left" in out
