import errno
import hashlib
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.directories import remove_tree
from shared.errors import FormatError, StorageError
from shared.files import read_bytes
from shared.storage import (
    read_sealed,
    seal,
    sha256_file,
    write_file,
    write_large_sealed,
    write_sealed,
)
from shared.system import system
from tests.helpers import another_process

DOCUMENT = {"format": "argonne-tokens", "text": 'caf\u00e9 \\ "q"', "n": -12, "x": 1.5e-7, "list": [1, True, None, {}]}
WRITE_HALF = """
import pathlib, sys
from shared.storage import write_file
def pieces():
    yield b"new" * 100_000
    print("ready", flush=True)
    sys.stdin.read()
    yield b"end"
write_file(pathlib.Path(sys.argv[1]), pieces())
"""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
documents = st.dictionaries(st.text().filter(lambda key: key != "fingerprint"), json_values, max_size=5)


# files


def test_a_file_holds_its_pieces_end_to_end_and_its_checksum_is_returned(tmp_path):
    path = tmp_path / "file"
    ids = np.arange(5, dtype="<u2")
    wanted = b"ab" + ids.tobytes()
    assert write_file(path, [b"a", b"", b"b", ids.data]) == hashlib.sha256(wanted).hexdigest() == sha256_file(path)
    assert path.read_bytes() == wanted
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_no_pieces_is_empty(tmp_path):
    write_file(tmp_path / "file", [])
    assert (tmp_path / "file").read_bytes() == b""


def failing_pieces():
    yield b"half of the new"
    raise RuntimeError("in the middle")


def test_a_failed_write_leaves_the_old_contents(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="in the middle"):
        write_file(path, failing_pieces())
    assert path.read_bytes() == b"old"


def test_a_failed_first_write_leaves_no_file_and_does_not_hinder_the_next(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(RuntimeError, match="in the middle"):
        write_file(path, failing_pieces())
    assert not path.exists()
    write_file(path, [b"new"])
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_is_not_visible_before_it_is_whole_nor_after_a_kill(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with another_process(WRITE_HALF, path) as writer:
        assert path.read_bytes() == b"old"
        writer.kill()
        writer.wait()
        assert path.read_bytes() == b"old"


def test_a_finished_write_of_another_process_is_whole(tmp_path):
    path = tmp_path / "file"
    with another_process(WRITE_HALF, path) as writer:
        writer.stdin.close()
        assert writer.wait() == 0
    assert path.read_bytes() == b"new" * 100_000 + b"end"


def test_remove_tree_leaves_nothing_of_a_directory(tmp_path):
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "run" / "deep" / "file").write_bytes(b"x")
    remove_tree(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


# sealed documents


@settings(deadline=None)
@given(documents)
def test_a_sealed_document_reads_back_as_it_was_written(tmp_path_factory, document):
    path = tmp_path_factory.getbasetemp() / "sealed.json"
    fingerprint = write_sealed(path, document)
    assert read_sealed(path) == {**document, "fingerprint": fingerprint}


@settings(deadline=None)
@given(documents)
def test_a_seal_does_not_depend_on_the_order_of_keys_or_on_an_older_seal(document):
    shuffled = {"fingerprint": "older", **dict(reversed(document.items()))}
    assert seal(shuffled) == seal(document)


def test_a_flipped_bit_never_reads_as_a_different_document(tmp_path):
    path = tmp_path / "sealed.json"
    write_sealed(path, DOCUMENT)
    contents, document = path.read_bytes(), read_sealed(path)
    for bit in range(8 * len(contents)):
        damaged = bytearray(contents)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert read_or_refuse(path) in (document, None)  # a flip between tokens can leave JSON of the same contents


@pytest.mark.parametrize("write", [write_sealed, write_large_sealed])
def test_a_cut_document_is_refused(tmp_path, write):
    path = tmp_path / "sealed.json"
    write(path, DOCUMENT)
    contents = path.read_bytes()
    for size in range(len(contents)):
        path.write_bytes(contents[:size])
        assert read_or_refuse(path) is None


def read_or_refuse(path):
    try:
        return read_sealed(path)
    except FormatError:
        return None


@pytest.mark.parametrize("contents", [b"", b"{", b"\xff\xfe\xfd", b"PAR1", b"{} {}"])
def test_a_file_that_is_not_json_is_refused(tmp_path, contents):
    (tmp_path / "sealed.json").write_bytes(contents)
    with pytest.raises(FormatError, match=r"sealed\.json is not valid JSON \(.+\): it is damaged or not ours; restore"):
        read_sealed(tmp_path / "sealed.json")


@settings(deadline=None)
@given(document=documents.filter(bool))
def test_a_large_document_has_the_same_seal_and_reads_back(tmp_path_factory, document):
    path = tmp_path_factory.mktemp("large") / "a.json"
    assert write_large_sealed(path, document) == seal(document)
    assert read_sealed(path) == {**document, "fingerprint": seal(document)}
    assert path.read_bytes().count(b"\n") == 1


@pytest.mark.parametrize("place", [1, 20, -70, -10, -3])
def test_a_flipped_bit_of_a_large_document_is_found(tmp_path, place):
    path = tmp_path / "a.json"
    write_large_sealed(path, DOCUMENT)
    contents = bytearray(path.read_bytes())
    contents[place] ^= 1
    path.write_bytes(contents)
    with pytest.raises(FormatError, match=r"does not match its own checksum|is not valid JSON"):
        read_sealed(path)


@pytest.mark.parametrize("document", [{}, {"a": 1}, {"a": 1, "fingerprint": None}, {"fingerprint": "0" * 64}, [], 3])
def test_json_without_its_own_seal_is_refused(tmp_path, document):
    (tmp_path / "sealed.json").write_text(json.dumps(document))
    with pytest.raises(FormatError, match=r"sealed\.json does not match its own checksum: it was damaged or edited; "):
        read_sealed(tmp_path / "sealed.json")


@pytest.mark.parametrize(("stumbles", "is_read"), [(3, True), (4, False)])
def test_a_read_is_asked_for_four_times_before_it_fails_by_name(tmp_path, monkeypatch, stumbles, is_read):
    (tmp_path / "file").write_bytes(b"contents")
    read, calls = system.read, itertools.count(1)

    def stumble(*arguments):
        if next(calls) <= stumbles:
            raise OSError(errno.EIO, "Input/output error")
        return read(*arguments)

    monkeypatch.setattr(system, "read", stumble)
    if is_read:
        assert read_bytes(tmp_path / "file") == b"contents"
        return
    message = r"file cannot be read \(Input/output error, 4 times in a row\): look at the disk or the network it is"
    with pytest.raises(StorageError, match=message):
        read_bytes(tmp_path / "file")


def test_an_absent_sealed_document_is_the_readers_question(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "sealed.json")
