"""The arrays of all shards as one."""

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shared.arrays import StoredArray
from shared.errors import FormatError
from train import maps
from train.maps import ShardMaps

UINT16 = np.dtype("<u2")
SIZES = np.array([5, 0, 3000, 1, 2048 * 3 - 64])


@pytest.fixture
def stored(tmp_path):
    """Files in which every element tells its shard and place."""
    for shard, size in enumerate(SIZES):
        np.save(tmp_path / f"{shard}.npy", (np.arange(size) + 10_000 * shard).astype(UINT16))
    return lambda shard: StoredArray(tmp_path / f"{shard}.npy", UINT16, int(SIZES[shard]), "make it")


def some(count, seed=0):
    """Shards and offsets that there are."""
    everywhere = [(shard, offset) for shard, size in enumerate(SIZES) for offset in range(size)]
    chosen = np.random.default_rng(seed).choice(len(everywhere), count)
    return np.array(everywhere)[chosen].T


@pytest.mark.parametrize("most", [1, 2, 100])
def test_elements_of_any_shards_are_read_at_once_however_many_may_be_mapped(stored, monkeypatch, most):
    monkeypatch.setattr(maps, "MAX_MAPPED", most)
    arrays = ShardMaps(stored, SIZES, UINT16)
    for seed in range(20):
        shards, offsets = some(3, seed)
        assert arrays.read(shards, offsets).tolist() == (offsets + 10_000 * shards).tolist()


def test_runs_of_elements_may_reach_behind_the_last_shard(stored):
    arrays = ShardMaps(stored, SIZES, UINT16, room=7)
    last = np.array([len(SIZES) - 1])
    found = np.empty((1, 8), UINT16)
    arrays.windows(8).gather(arrays.starts(last) + (SIZES[-1] - 1) * 2, found)
    assert found.tolist() == [[(SIZES[-1] - 1 + 40_000) % 65536, *[0] * 7]]


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_rows_from_anywhere_are_gathered_into_memory_that_there_is(tmp_path, dtype):
    sizes = np.array([70, 90])
    for shard in range(2):
        np.save(tmp_path / f"{shard}.npy", (np.arange(sizes[shard]) + 60_000 + 1000 * shard).astype(dtype))
    arrays = ShardMaps(
        lambda shard: StoredArray(tmp_path / f"{shard}.npy", np.dtype(dtype), 70 + 20 * shard, ""),
        sizes,
        np.dtype(dtype),
    )
    shards, offsets = np.array([1, 0, 1, 0]), np.array([3, 60, 80, 61])
    found = np.empty((4, 9), dtype)
    arrays.windows(9).gather(arrays.starts(shards) + offsets * found.itemsize, found)
    firsts = 60_000 + 1000 * shards + offsets
    assert found.tolist() == (firsts[:, None] + np.arange(9)).tolist()


def test_no_file_stays_open(stored):
    descriptors = lambda: len(list(Path("/proc/self/fd").iterdir()))  # noqa: E731
    before = descriptors()
    arrays = ShardMaps(stored, SIZES, UINT16)
    arrays.starts(np.arange(len(SIZES)))
    assert descriptors() == before


def test_pages_are_asked_for_without_being_waited_for(stored, tmp_path):
    """The whole of a file that is on the disk alone is in memory soon after."""
    arrays = ShardMaps(stored, SIZES, UINT16, mmap.MADV_RANDOM)
    starts = arrays.starts(np.array([2, 4]))
    arrays.will_need(starts, SIZES[[2, 4]])
    assert arrays.read(np.array([2, 4]), np.array([2999, 6079])).tolist() == [22_999, 46_079]


def test_an_array_that_numpy_did_not_write_is_refused(stored, tmp_path):
    path = tmp_path / "2.npy"
    array = np.load(path)
    with open(path, "wb") as file:
        header = str({"descr": "<u2", "fortran_order": False, "shape": (3000,)}).encode().ljust(53) + b"\n"
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + array.tobytes())
    with pytest.raises(FormatError, match=r"2.npy has a header of 69 bytes; 128 are wanted: delete 2.\* .* `make it`"):
        ShardMaps(stored, SIZES, UINT16).read(np.array([2]), np.array([0]))


def test_more_than_the_address_space_is_told():
    code = (
        "import numpy as np, resource; from train.maps import ShardMaps; "
        "ShardMaps(None, np.array([1 << 46]), np.dtype('<u2'))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UserError: 140,737,488,3" in ended.stderr
    assert "bytes of the dataset cannot be mapped (Cannot allocate memory): lift `ulimit -v`" in ended.stderr
