import errno
import json
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from shared.locks import exclusive
from shared.system import system
from tests.helpers import run_cli
from tests.train_helpers import recipe
from train import disk, machine, smoke
from train.disk import examine_disk, file_system, has_locks, has_renames, nearest
from train.doctor import Patient, doctor, examine
from train.finding import finding, worst
from train.machine import examine_machine
from train.smoke import Ranks, Smoke


def by_name(findings):
    return {found.what: found for found in findings}


class Said:
    """Ranks that have found this, without being started."""

    def __init__(self, found):
        self.found = found

    def wait(self):
        return self.found

    def end(self):
        pass


@pytest.fixture
def no_ranks(monkeypatch):
    monkeypatch.setattr("train.doctor.Ranks", lambda number: Said(Smoke("cpu", "gloo", number, 0.1, (6.0, 5.0), 0.1)))


def test_a_machine_that_is_well_is_said_to_be_in_one_line_for_each_thing(small_tokens, tmp_path):
    options = ("--tokens", small_tokens, "--run", tmp_path / "run", "--data.sequence-length", 64, "--nproc", 2)
    ended = run_cli("train", "doctor", *options, "--data.validation-chunks", 16)
    lines = ended.stdout.splitlines()
    names = [line[9:25].strip() for line in lines[:-1]]
    assert names == [
        *("software", "cores", "memory", "shared memory", "limits", "devices", "dataset", "run", "run disk"),
        *("run disk space", "process group", "one real step"),
    ], ended
    assert "one real step    0." in lines[-2] or "one real step    1." in lines[-2], ended.stdout
    assert ended.returncode == (1 if any(line.startswith("warning") for line in lines) else 0), ended
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.iterdir())


def test_programs_read_json_and_a_problem_is_exit_code_2(no_ranks, tmp_path, capsys):
    assert doctor(Patient(recipe(), 2, tmp_path), as_json=True) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "problem"
    (problem,) = [found for found in told["findings"] if found["status"] == "problem"]
    assert (problem["what"], problem["found"].startswith(f"{tmp_path} is not a token dataset")) == ("dataset", True)


def test_the_exit_code_is_that_of_the_worst_finding(no_ranks, monkeypatch, capsys):
    for status, code, last in (
        ({}, 0, "a run can begin"),
        ({"warning": "do this"}, 1, "a run can begin, but look at the warnings"),
        ({"problem": "do that"}, 2, "mend the problems first"),
    ):
        monkeypatch.setattr("train.doctor.examine", lambda _, status=status: iter([finding("it", "is so", **status)]))
        assert doctor(Patient(recipe(), 1), as_json=False) == code
        assert capsys.readouterr().out.splitlines()[-1] == last
    assert worst([]) == "ok"
    assert str(finding("it", "is so", problem="do that")) == "problem  it               is so: do that"


def test_a_damaged_shard_is_a_problem_of_the_dataset(no_ranks, small_tokens, tmp_path):
    shutil.copytree(small_tokens, tmp_path / "tokens")
    smallest = min((tmp_path / "tokens").glob("0000?.npy"), key=lambda path: path.stat().st_size)
    with open(smallest, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    found = by_name(examine(Patient(recipe(), 1, tmp_path / "tokens")))
    assert found["dataset"].status == "problem"
    assert f"{smallest} does not match its checksum: `make verify TOKENS=" in found["dataset"].found


def test_what_a_run_would_refuse_and_who_has_its_directory_is_told(no_ranks, small_tokens, tmp_path):
    (tmp_path / "run").mkdir()
    with exclusive(tmp_path / "run", "run"):
        wanting = recipe(data__sequence_length=64, data__validation_chunks=10**9, model__vocab_size=2048)
        found = by_name(examine(Patient(wanting, 1, small_tokens, tmp_path / "run")))
    assert found["run"].status == "problem"
    assert "data.validation_chunks reserves" in found["run"].found
    assert f"names process {os.getpid()} on " in found["run lock"].found


def test_a_disk_without_room_is_a_problem(tmp_path):
    space = examine_disk("run disk", tmp_path / "run", 1 << 60)[1]
    assert (space.status, "1,073,741,824.0 wanted" in space.found) == ("problem", True)


def test_a_disk_that_cannot_be_written_is_a_problem():
    (found,) = examine_disk("run disk", Path("/proc/self/run"), 1)
    assert (found.status, "cannot be used" in found.found, found.remedy) == ("problem", True, "name another directory")


def test_locks_that_hold_nobody_off_and_locks_that_there_are_not_are_problems(tmp_path, monkeypatch):
    assert has_locks(tmp_path)
    monkeypatch.setattr(system, "lock", lambda *_: None)
    (found, _) = examine_disk("run disk", tmp_path, 1)
    assert (found.status, "its locks hold nobody off" in found.remedy) == ("problem", True)

    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(system, "lock", refuse)
    (found,) = examine_disk("run disk", tmp_path, 1)
    assert (found.status, "cannot be locked" in found.found) == ("problem", True)


def test_renames_that_copy_are_problems(tmp_path, monkeypatch):
    (tmp_path / "well").mkdir()
    assert has_renames(tmp_path / "well")
    monkeypatch.setattr(
        system, "rename", lambda old, new: shutil.copytree(old, new) if old.is_dir() else shutil.copy(old, new)
    )
    assert "its renames are not whole" in examine_disk("run disk", tmp_path, 1)[0].remedy


def test_a_slow_disk_a_clock_apart_and_a_disk_of_memory_are_warnings(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "SLOW_S", 0.0)
    monkeypatch.setattr(disk, "SKEW_S", -1.0)
    monkeypatch.setattr(disk, "file_system", lambda _: "tmpfs")
    found = examine_disk("run disk", tmp_path, 1)[0]
    assert found.status == "warning"
    for words in ("it is memory and goes", "to be durable: a checkpoint will be slow", "away from this machine's"):
        assert words in found.remedy


def test_the_file_system_is_that_of_the_nearest_directory(tmp_path):
    assert nearest(tmp_path / "a" / "b") == tmp_path
    kinds = {line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}
    assert file_system(tmp_path) in kinds
    assert file_system(Path("/proc")) == "proc"


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"_requirements": lambda: ["torch>=99.0"]}, "software", "install torch>=99.0"),
        ({"FASTER": ("no-such-engine",)}, "software", "no-such-engine would make tokenizing faster"),
        ({"_quota": lambda _: 1.5}, "cores", "2 processes share them: give fewer with NPROC"),
        ({"LEAST_FREE": 1 << 60}, "memory", "end what else runs here"),
        ({"LEAST_SHARED": {False: 1 << 60}}, "shared memory", "are wanted: `docker run --shm-size 2g`"),
        ({"SHARED_MEMORY": Path("/no/such/place")}, "shared memory", "mount a tmpfs there"),
        ({"LEAST_FILES": 1 << 60}, "limits", "open files, raise them with `ulimit -n"),
    ],
)
def test_what_a_machine_lacks_is_told_with_what_mends_it(monkeypatch, change, name, words):
    for attribute, value in change.items():
        monkeypatch.setattr(machine, attribute, value)
    found = by_name(examine_machine(2, 0))[name]
    assert found.status in ("warning", "problem")
    assert words in found.remedy


def test_too_many_threads_are_a_warning(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    monkeypatch.setattr(machine, "_quota", lambda _: 64)
    assert "4096 threads for each of 2 processes are too many" in by_name(examine_machine(2, 0))["cores"].remedy


def test_limits_of_file_size_and_of_addresses_are_problems(no_ranks, small_tokens, tmp_path, monkeypatch):
    monkeypatch.setattr("train.doctor.file_size_limit", lambda: 1000)
    monkeypatch.setattr("train.doctor.address_space_limit", lambda: 1000)
    patient = Patient(recipe(data__sequence_length=64), 1, small_tokens, tmp_path / "run")
    found = by_name(examine(replace(patient, config=recipe(model__vocab_size=2048))))
    assert "raise `ulimit -v`" in found["dataset"].remedy
    assert "`ulimit -f` below" in found["file size"].remedy
    assert machine._soft(resource.RLIMIT_AS) in (None, resource.getrlimit(resource.RLIMIT_AS)[0])


def test_ranks_that_die_and_ranks_that_hang_are_named_and_none_is_left(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import os; os.environ.get('RANK') == '1' and os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    dying = Ranks(2)
    assert dying.wait() == "rank 1: exit code 3"
    (tmp_path / "sitecustomize.py").write_text("import os, time; os.environ.get('RANK') == '1' and time.sleep(60)")
    hanging = Ranks(2)
    assert hanging.wait(0.5) == "no end within 0.5 s"
    assert all(rank.poll() is not None for rank in (*dying._ranks, *hanging._ranks))


def test_ranks_that_add_or_learn_otherwise_are_told():
    smoke.check_sum(3.0, 2)
    with pytest.raises(RuntimeError, match=r"^ranks 1 to 2 add up to 2, not 3$"):
        smoke.check_sum(2.0, 2)
    smoke.check_losses([(2.0, 1.0), (2.0, 1.0)])
    for seen in ([(2.0, 1.0), (2.0, 1.5)], [(2.0, float("nan"))] * 2, [(2.0, 1.0), (float("inf"), 1.0)]):
        with pytest.raises(RuntimeError, match=r"^the losses of one step on 2 ranks are .*: they are to be finite and"):
            smoke.check_losses(seen)


def test_a_step_that_does_not_lower_the_loss_is_a_problem(monkeypatch, no_ranks):
    monkeypatch.setattr("train.doctor.Ranks", lambda _: Said("rank 0: boom"))
    (*_, last) = examine(Patient(recipe(), 1))
    assert (last.status, last.found) == ("problem", "rank 0: boom")
    worse = Smoke("cpu", "gloo", 2, 0.1, (5.0, 6.0), 0.1)
    monkeypatch.setattr("train.doctor.Ranks", lambda _: Said(worse))
    (*_, last) = examine(Patient(recipe(), 1))
    assert (last.status, last.remedy) == ("problem", "a step by its own gradient is to lower the loss")
