"""Locks, thefts of them and what the robbed may still do: nothing. All by real processes."""

import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from preprocess.__main__ import main
from shared import locks
from shared.claims import adopt, held
from shared.directories import move, remove_file, remove_tree
from shared.errors import UserError
from shared.locks import exclusive, together
from shared.storage import append_line, write_file
from tests.helpers import REPOSITORY, another_process, await_that, contents, run_cli, start_cli, workers_of

HOLD = """
import pathlib, sys
from shared.locks import exclusive, together
with globals()[sys.argv[2]](pathlib.Path(sys.argv[1]), "run"):
    print("ready", flush=True)
    sys.stdin.read()
"""
ACT = """
import pathlib, sys
from shared.directories import move, remove_file, remove_tree
from shared.errors import UserError
from shared.locks import exclusive
from shared.storage import append_line, write_file
there = pathlib.Path(sys.argv[1])
acts = {
    "write": lambda: write_file(there / "file", [b"new"]),
    "append": lambda: append_line(there / "log", "new"),
    "delete": lambda: remove_file(there / "file"),
    "move": lambda: move(there / "file", there / "moved"),
    "delete all": lambda: remove_tree(there / "directory"),
}
with exclusive(there, "run"):
    print("ready", flush=True)
    sys.stdin.readline()
    for name, act in acts.items():
        try:
            act()
            print(name, "done")
        except UserError as error:
            print(name, "refused:", error)
"""
STOPPED_BEFORE_THE_RENAME = """
import os, pathlib, signal, sys
from shared.locks import exclusive
from shared.storage import write_file
from shared.system import system
rename = system.rename
def stop_and_rename(old, new):
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    rename(old, new)
system.rename = stop_and_rename
with exclusive(pathlib.Path(sys.argv[1]), "run"):
    write_file(pathlib.Path(sys.argv[1]) / "file", [b"of the robbed"])
"""
RACE = """
import pathlib, sys, time
from shared.errors import UserError
from shared.locks import exclusive
from shared.storage import append_line
there = pathlib.Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    with exclusive(there, "run", steal=sys.argv[2] == "steal"):
        time.sleep(1)
        append_line(there / "log", "I had it alone")
        print("done")
except UserError as error:
    print(error)
"""


@pytest.fixture
def begun_last(monkeypatch):
    """This process may rob others, as if it had begun after they took what they hold."""
    monkeypatch.setattr(locks, "BEGAN_S", math.inf)


def test_a_lock_names_its_owner_until_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "81723")
    with another_process(HOLD, tmp_path, "exclusive") as holder:
        message = (
            rf"{tmp_path} is in use by another run \(process {holder.pid} of job 81723 on {platform.node()}, since "
            r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\): wait for it to end or name another directory; if it is gone for good, "
            "--steal takes this one over"
        )
        for hold in (exclusive, together):
            with pytest.raises(UserError, match=message), hold(tmp_path, "run"):
                pass
        holder.kill()
        holder.wait()
        with exclusive(tmp_path, "run"):
            pass


def test_a_directory_held_here_is_refused_to_another_process(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path), "exclusive"]
    with exclusive(tmp_path, "run"):
        refused = subprocess.run(command, input="", capture_output=True, text=True, check=False, cwd=REPOSITORY)
    freed = subprocess.run(command, input="", capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert f"is in use by another run (process {os.getpid()} on " in refused.stderr
    assert (freed.returncode, freed.stdout) == (0, "ready\n")


def test_a_directory_is_free_again_after_an_error_in_the_block(tmp_path):
    with pytest.raises(RuntimeError, match="inside"), exclusive(tmp_path, "run"):
        raise RuntimeError("inside")
    with exclusive(tmp_path, "run"):
        pass
    assert held() == ()


def test_two_directories_can_be_held_at_once(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with exclusive(tmp_path / "a", "run"), exclusive(tmp_path / "b", "run"):
        pass


def test_several_may_hold_together_and_none_alone_beside_them(tmp_path):
    with another_process(HOLD, tmp_path, "together"), together(tmp_path, "run"):
        with pytest.raises(UserError, match="is in use by another run: wait"), exclusive(tmp_path, "run"):
            pass
        with exclusive(tmp_path, "part", ".lock-1-of-2"):
            found = rf"is in use by another run \(process {os.getpid()} on "
            with pytest.raises(UserError, match=found), exclusive(tmp_path, "run"):
                pass


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    from shared.system import system

    def lock(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(system, "lock", lock)
    message = r"\.lock cannot be locked \(Operation not supported\): name a directory on a file system with `flock`, or"
    with pytest.raises(UserError, match=message), exclusive(tmp_path, "run"):
        pass


def test_who_was_robbed_writes_appends_deletes_and_moves_nothing_more(tmp_path, begun_last):
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("old")
    (tmp_path / "log").write_text("old\n")
    with another_process(ACT, tmp_path) as robbed:
        robbed.send_signal(signal.SIGSTOP)
        with exclusive(tmp_path, "run", steal=True):
            robbed.send_signal(signal.SIGCONT)
            out, _ = robbed.communicate("go on\n", timeout=30)
            refusal = (
                rf"{tmp_path} was taken over by process {os.getpid()} on {platform.node()}, since .*: this process "
                "writes nothing there any more; what it had finished is kept"
            )
            lines = out.splitlines()
            assert [line.split(" refused")[0] for line in lines] == ["write", "append", "delete", "move", "delete all"]
            assert all(re.search(refusal, line) for line in lines)
            with pytest.raises(UserError, match="is in use by another run"), exclusive(tmp_path, "run"):
                pass
    assert (tmp_path / "file").read_text() == "old"
    assert (tmp_path / "log").read_text() == "old\n"
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    with exclusive(tmp_path, "run"):
        pass


def test_who_is_robbed_between_its_last_look_and_the_rename_puts_nothing_in_place(tmp_path, begun_last):
    with another_process(STOPPED_BEFORE_THE_RENAME, tmp_path) as robbed:
        with exclusive(tmp_path, "run", steal=True):
            (left,) = tmp_path.glob("file.*.tmp")
            remove_file(left)  # as every owner does at its start
            write_file(tmp_path / "file", [b"of the thief"])
            robbed.send_signal(signal.SIGCONT)
            _, error = robbed.communicate(timeout=30)
            assert "was taken over by process" in error
        assert robbed.returncode == 1
    assert (tmp_path / "file").read_bytes() == b"of the thief"


def test_what_is_held_together_can_be_stolen_by_one_and_back(tmp_path, begun_last):
    with another_process(HOLD, tmp_path, "together"), together(tmp_path, "run"):
        (claim,) = held()
        with exclusive(tmp_path, "run", steal=True), pytest.raises(UserError, match="was taken over by process"):
            claim.check()
    thief = together(tmp_path, "run", steal=True)
    beside = together(tmp_path, "run", steal=True)  # not from the first thief
    with another_process(HOLD, tmp_path, "exclusive"), thief, beside:
        for claim in held():
            claim.check()


def test_a_claim_on_a_directory_that_is_gone_is_no_claim(tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    with exclusive(there, "run"):
        there.rename(tmp_path / "elsewhere")
        with pytest.raises(UserError, match=r"there was taken over: this process writes nothing there any more"):
            remove_tree(there)


def test_a_process_that_adopts_the_claims_of_another_is_robbed_with_it(tmp_path):
    with exclusive(tmp_path, "run"):
        claims = held()
    adopt(claims)
    try:
        for change in (
            lambda: write_file(tmp_path / "file", [b""]),
            lambda: append_line(tmp_path / "file", ""),
            lambda: move(tmp_path / "file", tmp_path / "other"),
            lambda: remove_tree(tmp_path),
        ):
            with pytest.raises(UserError, match="was taken over"):
                change()
        write_file(tmp_path.parent / "file", [b""])
    finally:
        adopt([])


@pytest.mark.parametrize("how", ["wait", "steal"])
@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.long)])
def test_of_eight_that_start_at_once_exactly_one_goes_on_and_the_others_name_it(tmp_path, how, rounds):
    for number in range(rounds):
        there = tmp_path / str(number)
        there.mkdir()
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(there), "exclusive"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            cwd=REPOSITORY,
        )  # fmt: skip
        assert holder.stdout.readline() == b"ready\n"
        holder.send_signal(signal.SIGSTOP if how == "steal" else signal.SIGKILL)
        time.sleep(0.05)
        command = [sys.executable, "-c", RACE, str(there), how]
        racers = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
            for _ in range(8)
        ]
        assert [racer.stdout.readline() for racer in racers] == ["ready\n"] * 8
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        said = [racer.communicate(timeout=60)[0] for racer in racers]
        holder.kill()
        holder.communicate()
        (winner,) = [racer.pid for racer, line in zip(racers, said, strict=True) if line == "done\n"]
        others = [line for line in said if line != "done\n"]
        assert all(f"(process {winner} on " in line or f" by process {winner} on " in line for line in others), said
        assert (there / "log").read_text() == "I had it alone\n"


@pytest.mark.parametrize(
    ("command", "held_name"),
    [
        (["finish", "DATA", "OUT", "--chunk-length", "64"], "."),
        (["duplicates", "DATA", "OUT", "--chunk-length", "64"], "."),
        (["tokenize", "DATA", "OUT", "--chunk-length", "64", "--part", "1/2"], "."),
        (["pack", "OUT", "--length", "8"], "packings/best-fit-8"),
    ],
    ids=["finish", "duplicates", "part", "pack"],
)
def test_every_command_that_holds_a_directory_can_steal_it(
    small_input, small_tokens, tmp_path, begun_last, capsys, command, held_name
):
    out = tmp_path / "out"
    shutil.copytree(small_tokens, out)
    (out / held_name).mkdir(parents=True, exist_ok=True)
    if command[0] == "duplicates":  # comes before the shards
        for path in out.glob("[0-9i]*"):
            path.unlink()
    words = [{"DATA": str(small_input), "OUT": str(out)}.get(word, word) for word in command]
    if "DATA" in command:
        words += ["--shard-megabytes", str(100_000 / (1 << 20))]
    with another_process(HOLD, out / held_name, "exclusive") as holder:
        assert main(words) == 2
        assert f" (process {holder.pid} on " in capsys.readouterr().err
        assert main([*words, "--steal"]) == 0, capsys.readouterr().err


def test_a_build_that_is_stopped_and_stolen_from_ends_without_another_byte(
    small_input, small_tokens, tokenizer_path, tmp_path
):
    command = ("preprocess", "tokenize", small_input, tmp_path / "out", "--tokenizer", tokenizer_path, "--workers", "2")
    options = ("--chunk-length", "64", "--shard-megabytes", str(100_000 / (1 << 20)))
    robbed = start_cli(*command, *options)
    await_that((tmp_path / "out/00000.json").exists, robbed)
    processes = [robbed.pid, *workers_of(robbed.pid)]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    refused = run_cli(*command, *options)
    assert refused.returncode == 2
    assert f"is in use by another build (process {robbed.pid} on " in refused.stderr
    thief = run_cli(*command, *options, "--steal")
    assert thief.returncode == 0, thief.stderr
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.suffix != ".tmp"}
    for pid in processes:
        os.kill(pid, signal.SIGCONT)
    _, error = robbed.communicate(timeout=60)
    assert (robbed.returncode, error.splitlines()[-1].startswith(f"error: {tmp_path / 'out'} was taken over")) == (
        2,
        True,
    )
    left = [path for path in (tmp_path / "out").iterdir() if path.suffix != ".tmp"]  # a killed worker leaves its own
    assert {path: path.stat().st_mtime_ns for path in left} == finished
    whole = {name: data for name, data in contents(tmp_path / "out").items() if not name.endswith(".tmp")}
    assert whole == contents(small_tokens)
