"""What is read of `.metadata`, a checkpoint's pickle: nothing before its hash matches, and then only data."""

import os
import pickle

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from shared.errors import FormatError
from shared.storage import read_sealed, sha256_file
from tests.test_checkpoint import copied, saved, trained
from train.checkpoint_directory import MANIFEST_NAME
from train.checkpoint_files import METADATA_NAME, read_metadata
from train.tensors import load_tensors

pytestmark = pytest.mark.usefixtures("process_group")


class Command:
    """Its pickle calls a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.fixture
def path(tmp_path):
    saved(tmp_path, 1)
    return tmp_path / "step-00000001"


def put(path, value, is_vouched_for):
    """Another `.metadata` in the checkpoint at `path`; the manifest that should, or should not, match it."""
    (path / METADATA_NAME).write_bytes(pickle.dumps(value))
    manifest = read_sealed(path / MANIFEST_NAME)
    if is_vouched_for:
        manifest["files"][METADATA_NAME] = record(path / METADATA_NAME)
    return manifest


def record(file):
    return [file.stat().st_size, sha256_file(file)]


@pytest.mark.parametrize(
    ("is_vouched_for", "message"),
    [
        (False, r"\.metadata does not match its checksum$"),
        (True, r"\.metadata asks for posix\.mkdir, which no checkpoint needs: do not trust it$"),
    ],
)
def test_code_in_a_checkpoint_is_not_run(path, tmp_path, is_vouched_for, message):
    manifest = put(path, Command(os.mkdir, str(tmp_path / "made")), is_vouched_for)
    with pytest.raises(FormatError, match=message):
        load_tensors(path, copied(*trained()), manifest)
    assert not (tmp_path / "made").exists()
    pickle.loads((path / METADATA_NAME).read_bytes())
    assert (tmp_path / "made").exists()  # it would have run


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (eval, r"builtins\.eval"),
        (getattr, r"builtins\.getattr"),
        (torch.load, r"torch\.serialization\.load"),
        (torch.Size.__new__, r"builtins\.getattr"),
        (torch.compile, r"torch\.compile"),
    ],
)
def test_nothing_is_made_but_what_a_checkpoint_needs(path, function, name):
    manifest = put(path, Command(function, "1"), is_vouched_for=True)
    with pytest.raises(FormatError, match=rf"\.metadata asks for {name}, which no checkpoint needs: do not trust it$"):
        load_tensors(path, copied(*trained()), manifest)


def test_something_else_in_its_place_is_refused(path):
    manifest = put(path, {"state_dict_metadata": {}}, is_vouched_for=True)
    with pytest.raises(FormatError, match=r"\.metadata holds dict, not the metadata of a checkpoint: do not trust it$"):
        load_tensors(path, copied(*trained()), manifest)


@pytest.mark.parametrize("elsewhere", ["../step-00000002/__0_0.distcp", "/etc/passwd", "unlisted.distcp"])
def test_a_file_that_the_manifest_does_not_vouch_for_is_not_read(path, elsewhere):
    metadata = read_metadata(path / METADATA_NAME, record(path / METADATA_NAME))
    for info in metadata.storage_data.values():
        info.relative_path = elsewhere
    manifest = put(path, metadata, is_vouched_for=True)
    with pytest.raises(FormatError, match=rf"\.metadata wants '{elsewhere}', which is not in the manifest: do not tr"):
        load_tensors(path, copied(*trained()), manifest)


def test_a_checkpoint_written_by_torch_alone_as_ours_once_were_is_read(tmp_path):
    parts = trained()
    saved(tmp_path, 1, trained_parts=parts)
    manifest, there = read_sealed(tmp_path / "step-00000001" / MANIFEST_NAME), tmp_path / "step-00000002"
    save(copied(*parts), checkpoint_id=there)
    files = {file.name: record(file) for file in there.iterdir()}
    other = {name: torch.zeros_like(tensor) for name, tensor in copied(*parts).items()}
    load_tensors(there, other, {**manifest, "files": files})
    assert all(torch.equal(tensor, other[name]) for name, tensor in copied(*parts).items())
