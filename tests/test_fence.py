import fcntl
import threading

import pytest

from preprocess import fence
from preprocess.fence import FENCE_NAME, close_fence, inside_fence, open_fence
from preprocess.parts import hold
from shared.errors import UserError

STRANGER = "is not the directory that the build began in: every node must share it; if they do, another build has begun"


def test_a_task_of_this_build_may_write_and_so_may_several_at_once(tmp_path):
    name = open_fence(tmp_path)
    with inside_fence(tmp_path, name), inside_fence(tmp_path, name):
        pass


@pytest.mark.parametrize("after", [open_fence, close_fence])
def test_a_task_of_an_earlier_build_comes_too_late(tmp_path, after):
    name = open_fence(tmp_path)
    after(tmp_path)
    with pytest.raises(UserError, match=STRANGER), inside_fence(tmp_path, name):
        pass


def test_a_directory_that_is_not_shared_is_noticed_and_nothing_made_in_it(tmp_path):
    name = open_fence(tmp_path)
    for other in (tmp_path / "other", tmp_path / "absent"):
        with pytest.raises(UserError, match=STRANGER), inside_fence(other, name):
            pass
    assert [path.name for path in tmp_path.iterdir()] == [FENCE_NAME]


def test_a_build_waits_for_the_tasks_of_an_earlier_one(tmp_path, capsys):
    name, has_begun = open_fence(tmp_path), threading.Event()

    def begin():
        with hold(tmp_path, None):
            has_begun.set()

    build = threading.Thread(target=begin)
    with inside_fence(tmp_path, name):
        build.start()
        assert not has_begun.wait(1.5)
    assert has_begun.wait(10)
    build.join()
    assert capsys.readouterr().out == "waiting for tasks on other machines to end\n"


def test_a_build_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(fence, "WAIT_S", 0.1)
    name = open_fence(tmp_path)
    message = "is in use by another build, whose tasks outlived it: wait for it to end or name another directory"
    with inside_fence(tmp_path, name), pytest.raises(UserError, match=message), hold(tmp_path, None):
        pass


def test_a_task_that_comes_while_a_build_begins_is_refused(tmp_path):
    name = open_fence(tmp_path)
    with open(tmp_path / FENCE_NAME, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is in use by another build, whose tasks"), inside_fence(tmp_path, name):
            pass


def test_a_build_that_never_had_tasks_elsewhere_has_no_fence(tmp_path):
    with hold(tmp_path, None):
        assert not (tmp_path / FENCE_NAME).exists()
