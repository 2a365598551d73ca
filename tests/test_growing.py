import hashlib
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess.growing import GrowingArray
from shared.storage import new_file
from tests.helpers import contents

DTYPE = np.dtype("<u2")
Pieces = st.lists(st.lists(st.integers(0, 65535), max_size=9))


@given(Pieces, Pieces)
def test_what_was_added_since_it_was_emptied_is_the_array(tmp_path_factory, forgotten, pieces):
    path = tmp_path_factory.getbasetemp() / "growing.npy"
    with new_file(path) as file:
        array = GrowingArray(file, DTYPE)
        for piece in forgotten:
            array.add(np.array(piece, DTYPE))
        array.clear()
        for piece in pieces:
            array.add(np.array(piece, DTYPE))
        wanted = [value for piece in pieces for value in piece]
        assert len(array) == len(wanted)
        sha256 = array.finish()
    assert (np.load(path).tolist(), np.load(path).dtype) == (wanted, DTYPE)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 70_000])
def test_the_file_is_the_one_that_numpy_writes(tmp_path, size):
    values = np.arange(size).astype(DTYPE)
    np.save(tmp_path / "numpy.npy", values)
    with new_file(tmp_path / "ours.npy") as file:
        array = GrowingArray(file, DTYPE)
        array.add(values[: size // 2])
        array.add(values[size // 2 :])
        array.finish()
    assert contents(tmp_path)["ours.npy"] == contents(tmp_path)["numpy.npy"]


def test_what_fails_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path):
    def fail_in_the_middle():
        with new_file(tmp_path / "a.npy") as file:
            array = GrowingArray(file, DTYPE)
            array.add(np.zeros(100_000, DTYPE))
            os.fsync(1_000_000)

    (tmp_path / "a.npy").write_bytes(b"old")
    with pytest.raises(OSError, match="Bad file descriptor"):
        fail_in_the_middle()
    assert contents(tmp_path) == {"a.npy": b"old"}
