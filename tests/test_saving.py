"""What a save does to a run: it is copied at once, told later, and never costs the checkpoint before it."""

import errno
import os
import resource
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from shared.errors import FormatError
from shared.storage import read_sealed
from shared.system import system
from tests.test_checkpoint import IDENTITY, copied, flip_a_bit, names, one_step, progress_at, tensor_file, trained
from train import checkpoint_save
from train.checkpoint import Checkpoints
from train.checkpoint_directory import ABANDONED_AFTER_S, MANIFEST_NAME, damage, newest
from train.checkpoint_save import SaveError

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture
def told():
    """Events, as (name, details)."""
    return []


@pytest.fixture(params=[False, True], ids=["synchronous", "asynchronous"])
def checkpoints(request, tmp_path, told):
    made = Checkpoints(
        tmp_path,
        2,
        IDENTITY,
        asynchronous=request.param,
        report=lambda name, **details: told.append((name, details)),
    )
    yield made
    made.close()


@pytest.fixture
def background(tmp_path, told):
    made = Checkpoints(
        tmp_path, 2, IDENTITY, asynchronous=True, report=lambda name, **details: told.append((name, details))
    )
    yield made
    made.close()


@pytest.fixture
def held(monkeypatch):
    """An event until which no save goes on in its thread."""
    go = threading.Event()
    save = checkpoint_save.save_checkpoint
    monkeypatch.setattr("train.checkpoint.save_checkpoint", lambda saving: go.wait(30) and save(saving))
    yield go
    go.set()


def save_all(checkpoints, *steps, parts=None):
    for step in steps:
        checkpoints.save(*(parts or trained()), progress_at(step))
    checkpoints.wait()


def check_until_told(checkpoints):
    """As the loop does after each step."""
    end_s = time.monotonic() + 30
    while time.monotonic() < end_s:
        checkpoints.check()


# in the background


def test_what_is_saved_is_what_the_run_was_when_the_save_began(background, held, tmp_path):
    model, optimizer = trained()
    background.save(model, optimizer, progress_at(1))
    before = copied(model, optimizer)
    one_step(model, optimizer, 7)
    held.set()
    background.wait()
    other = trained(steps=0, seed=9)
    assert background.load(tmp_path / "step-00000001", *other) == progress_at(1)
    assert all(torch.equal(value, before[name]) for name, value in copied(*other).items())
    assert not torch.equal(before["model.norm.weight"], model.norm.weight)


def test_the_loop_goes_on_while_a_save_is_under_way_and_the_next_one_waits_for_it(background, held, tmp_path, told):
    parts = trained()
    background.save(*parts, progress_at(1))
    background.check()
    assert (names(tmp_path), told) == ([], [])
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(background.save, *parts, progress_at(2))
        time.sleep(0.2)
        assert not second.done()
        held.set()
        second.result()
    assert [(name, details["step"]) for name, details in told] == [("save", 1)]
    background.wait()
    assert [details["step"] for _, details in told] == [1, 2]
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_closing_waits_for_the_last_save(background, held, tmp_path):
    background.save(*trained(), progress_at(1))
    threading.Timer(0.2, held.set).start()
    background.close()
    assert newest(tmp_path)[0] == tmp_path / "step-00000001"


def test_numbers_that_are_not_finite_are_told_at_the_next_step_and_not_saved(background, tmp_path):
    save_all(background, 1)
    model, optimizer = trained()
    optimizer.state[model.norm.weight]["exp_avg"][3] = float("nan")
    background.save(model, optimizer, progress_at(2))
    with pytest.raises(FormatError, match=r"^step 2 has weights or optimizer state that are not finite: not saved$"):
        check_until_told(background)
    assert names(tmp_path) == ["step-00000001"]


def test_only_a_background_save_takes_memory_and_it_takes_it_once(tmp_path, checkpoints, told):
    parts = trained()
    save_all(checkpoints, 1, 2, parts=parts)
    bytes_each = [details["copy_bytes"] for _, details in told]
    wanted = sum(value.nbytes for value in copied(*parts).values())
    assert bytes_each in ([0, 0], [wanted, wanted])
    assert [details["size_bytes"] for _, details in told] == [wanted, wanted]


# a disk that refuses


class Refusal:
    """Makes one call of the operating system fail from its `first` on, `times` times, if its file's name has `part`."""

    def __init__(self, monkeypatch, call, number, first=0, times=10**9):
        self.real, self.number, self.first, self.times, self.calls = getattr(system, call), number, first, times, 0
        monkeypatch.setattr(system, call, self)

    def __call__(self, *arguments):
        self.calls += 1
        if self.first < self.calls <= self.first + self.times:
            raise OSError(self.number, os.strerror(self.number))
        return self.real(*arguments)


def test_a_full_disk_costs_one_save_and_the_run_goes_on(tmp_path, checkpoints, told):
    save_all(checkpoints, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # a checkpoint has 170,000 bytes
    try:
        save_all(checkpoints, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    name, details = told[-1]
    path, size_bytes = tmp_path / "step-00000002", told[0][1]["size_bytes"]
    assert (name, details["path"], details["size_bytes"]) == ("save-failed", str(path), size_bytes)
    began = f"{path} was not saved ({size_bytes:,} bytes), older checkpoints are kept: {path}."
    assert details["problem"].startswith(began)
    assert "cannot be written (File too large; at least " in details["problem"]
    assert details["problem"].endswith(" bytes are free there")
    assert names(tmp_path) == ["step-00000001"]
    assert damage(tmp_path / "step-00000001") is None
    save_all(checkpoints, 3)
    assert names(tmp_path) == ["step-00000001", "step-00000003"]
    assert told[-1][0] == "save"


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_call_that_fails_costs_one_save(tmp_path, checkpoints, told, monkeypatch, call, number):
    save_all(checkpoints, 1)
    with monkeypatch.context() as patch:
        assert Refusal(patch, call, number, times=1).calls == 0
        save_all(checkpoints, 2)
    assert [name for name, _ in told] == ["save", "save-failed"]
    assert os.strerror(number) in told[1][1]["problem"]
    assert names(tmp_path) == ["step-00000001"]
    save_all(checkpoints, 3)
    assert newest(tmp_path) == (tmp_path / "step-00000003", {})


def test_the_end_of_a_run_is_saved_by_a_second_try_or_it_is_an_error(tmp_path, checkpoints, told, monkeypatch):
    parts = trained()
    with monkeypatch.context() as patch:
        Refusal(patch, "fsync", errno.EIO, times=1)
        checkpoints.save(*parts, progress_at(1))
        checkpoints.finish(*parts, progress_at(1))
    assert [name for name, _ in told] == ["save-failed", "save"]
    with monkeypatch.context() as patch:
        Refusal(patch, "write", errno.ENOSPC)
        message = r"step-00000002 was not saved \(.* bytes\), older checkpoints are kept: .*No space left"
        with pytest.raises(SaveError, match=message):
            checkpoints.finish(*parts, progress_at(2))
    assert names(tmp_path) == ["step-00000001"]


def test_a_finished_save_is_not_repeated(tmp_path, checkpoints, told):
    parts = trained()
    checkpoints.save(*parts, progress_at(1))
    checkpoints.finish(*parts, progress_at(1))
    assert [name for name, _ in told] == ["save"]


def test_a_checkpoint_that_does_not_read_back_is_told_and_older_ones_stay(tmp_path, checkpoints, told, monkeypatch):
    def lose_a_bit(path, group=None):
        flip_a_bit(path)
        return damage(path, group)

    save_all(checkpoints, 1)
    monkeypatch.setattr(checkpoint_save, "damage", lose_a_bit)
    save_all(checkpoints, 2)
    assert told[-1][0] == "save-failed"
    assert "it does not read back as written (" in told[-1][1]["problem"]
    assert names(tmp_path) == ["step-00000001"]


def test_what_cannot_be_deleted_does_not_cost_the_new_checkpoint(tmp_path, checkpoints, told, monkeypatch):
    save_all(checkpoints, 1, 2)
    Refusal(monkeypatch, "unlink", errno.EIO)
    save_all(checkpoints, 3)
    assert [name for name, _ in told[-2:]] == ["save", "warning"]
    assert told[-1][1]["problem"].startswith("older checkpoints were not deleted: ")
    assert newest(tmp_path)[0] == tmp_path / "step-00000003"


# what is found at a start


def abandon(directory, name, idle_s):
    """What a kill has left `idle_s` ago."""
    path = directory / name
    path.mkdir()
    (path / "__0_0.distcp").write_bytes(b"half")
    then = time.time() - idle_s
    for changed in (path / "__0_0.distcp", path):
        os.utime(changed, (then, then))
    return path


def test_abandoned_saves_are_deleted_and_told_at_a_start(tmp_path, checkpoints, told):
    save_all(checkpoints, 1)
    path = abandon(tmp_path, "step-00000002.0a1b2c3d.tmp", ABANDONED_AFTER_S + 60)
    assert checkpoints.recover() == tmp_path / "step-00000001"
    assert names(tmp_path) == ["step-00000001"]
    assert told[1:] == [("swept", {"path": str(path), "idle_s": 660})]


def test_what_was_written_to_a_moment_ago_can_become_no_checkpoint_and_is_deleted_by_a_later_save(
    tmp_path, checkpoints, told
):
    save_all(checkpoints, 1)
    before = abandon(tmp_path, "step-00000002.0a1b2c3d.tmp", 5)
    checkpoints.recover()
    [path] = set(tmp_path.iterdir()) - {tmp_path / "step-00000001"}
    assert (path.name[:14], path.suffix, path != before) == ("step-00000002.", ".tmp", True)
    [(name, details)] = told[1:]
    assert name == "unfinished"
    problem = f"{path} is unfinished, last written to 5 s ago: kept, for a rank of an earlier start may still be alive"
    assert details["problem"] == problem
    os.utime(path / "__0_0.distcp", (0, 0))
    os.utime(path, (0, 0))
    save_all(checkpoints, 3)
    assert not path.exists()
    assert [name for name, _ in told[2:]] == ["save", "swept"]


@pytest.mark.parametrize("name", ["step-best.0a1b2c3d.tmp", "mine.tmp", "step-00000002.tmp.old", "step-00000002-copy"])
def test_nothing_of_anyone_else_is_deleted(tmp_path, checkpoints, name):
    path = abandon(tmp_path, name, 1e6)
    checkpoints.recover()
    save_all(checkpoints, 3)
    assert path.exists()


def test_a_file_or_a_link_is_no_abandoned_save(tmp_path, checkpoints):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("")
    (tmp_path / "step-00000002.0a1b2c3d.tmp").write_text("")
    (tmp_path / "step-00000003.0a1b2c3d.tmp").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "elsewhere" / "kept", tmp_path / "elsewhere"):
        os.utime(path, (0, 0))
    checkpoints.recover()
    assert names(tmp_path) == ["elsewhere", "step-00000002.0a1b2c3d.tmp", "step-00000003.0a1b2c3d.tmp"]
    assert names(tmp_path / "elsewhere") == ["kept"]


def test_a_damaged_checkpoint_is_told_set_aside_and_looked_at_once(tmp_path, checkpoints, told):
    save_all(checkpoints, 4, 8)
    flip_a_bit(tmp_path / "step-00000008")
    assert checkpoints.recover() == tmp_path / "step-00000004"
    assert names(tmp_path) == ["damaged-step-00000008", "step-00000004"]
    [(name, details)] = told[2:]
    assert name == "damaged"
    assert details["problem"].startswith(f"{tmp_path / 'step-00000008'} is not used: ")
    assert details["problem"].endswith(".distcp does not match its checksum; it is set aside as damaged-step-00000008")
    assert checkpoints.recover() == tmp_path / "step-00000004"
    assert len(told) == 3
    save_all(checkpoints, 8, 9, 10)
    assert names(tmp_path) == ["damaged-step-00000008", "step-00000009", "step-00000010"]


def test_a_second_damaged_checkpoint_of_a_step_does_not_replace_the_first(tmp_path, checkpoints):
    save_all(checkpoints, 4, 8)
    for _ in range(2):
        flip_a_bit(tmp_path / "step-00000008")
        checkpoints.recover()
        save_all(checkpoints, 8)
    assert names(tmp_path) == [
        *("damaged-step-00000008", "damaged-step-00000008.2"),
        *("step-00000004", "step-00000008"),
    ]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again_from_nothing(tmp_path, checkpoints, told):
    save_all(checkpoints, 4, 8)
    for name in names(tmp_path):
        tensor_file(tmp_path / name).unlink()
    for _ in range(2):
        message = r"8 is not used: .*4 is not used: .*: mend one of them, or name another directory to start from "
        with pytest.raises(FormatError, match=message):
            checkpoints.recover()
    assert names(tmp_path) == ["step-00000004", "step-00000008"]
    assert len(told) == 2


def test_a_step_that_is_saved_again_keeps_the_checkpoint_that_was_there(tmp_path, checkpoints):
    save_all(checkpoints, 3)
    before = read_sealed(tmp_path / "step-00000003" / MANIFEST_NAME)
    save_all(checkpoints, 3, parts=trained(steps=4))
    assert names(tmp_path) == ["replaced-step-00000003", "step-00000003"]
    assert read_sealed(tmp_path / "replaced-step-00000003" / MANIFEST_NAME) == before
    assert read_sealed(tmp_path / "step-00000003" / MANIFEST_NAME)["files"] != before["files"]
    shutil.rmtree(tmp_path / "replaced-step-00000003")
    assert damage(tmp_path / "step-00000003") is None
