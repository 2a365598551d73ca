import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocess import shard, spool
from preprocess.build import build
from preprocess.config import BuildSettings, TokenizerSettings
from preprocess.spool import Spool
from tests.helpers import contents, write_parquet

DTYPE = np.dtype("<u2")


@given(st.lists(st.lists(st.integers(0, 65535), max_size=9)), st.integers(0, 60))
def test_what_was_added_comes_back_in_order(tmp_path_factory, pieces, kept_bytes):
    spooled = Spool(tmp_path_factory.getbasetemp(), DTYPE, kept_bytes)
    for piece in pieces:
        spooled.add(np.array(piece, DTYPE))
    wanted = [value for piece in pieces for value in piece]
    assert len(spooled) == len(wanted)
    for _ in range(2):
        assert np.concatenate([np.zeros(0, DTYPE), *spooled]).tolist() == wanted


def test_what_is_more_than_is_kept_is_in_a_file_without_a_name(tmp_path):
    spooled = Spool(tmp_path, DTYPE, 10)
    spooled.add(np.zeros(5, DTYPE))
    assert spooled._file is None
    spooled.add(np.ones(5, DTYPE))
    assert spooled._file is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept_bytes", [0, 5000])
def test_a_shard_too_large_to_keep_has_the_same_bytes(real_texts, tokenizer_path, tmp_path, monkeypatch, kept_bytes):
    path = write_parquet(tmp_path / "in/a.parquet", real_texts[:200], rows_per_group=10_000)
    arguments = (BuildSettings(64), TokenizerSettings(str(tokenizer_path)))
    build(str(path), tmp_path / "kept", *arguments)
    monkeypatch.setattr(shard, "Spool", lambda directory, dtype: Spool(directory, dtype, kept_bytes))
    monkeypatch.setattr(spool, "BLOCK_BYTES", 1002)
    build(str(path), tmp_path / "spooled", *arguments)
    assert contents(tmp_path / "spooled") == contents(tmp_path / "kept")
