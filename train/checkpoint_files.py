"""The tensors of a checkpoint in files, by torch's distributed checkpoint: a rank writes its part, any rank reads any.

Every file is written through shared/storage.py and hashed on its way. What says where each tensor is (`.metadata`) is a
pickle, which can run any code: it is opened only if its bytes have the hash that the manifest gives, and then makes
objects of the classes that it needs and of no others.
"""

import hashlib
import io
import pickle
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import (
    CURRENT_DCP_VERSION,
    FileSystem,
    FileSystemReader,
    FileSystemWriter,
)
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from shared.errors import FormatError, UserError
from shared.files import open_file, read_bytes
from shared.storage import hashed_file
from train.collective import on_every_rank

METADATA_NAME = ".metadata"
FileRecord = list[Any]
"""Size in bytes and hex sha256 of a file."""
DTYPES = {str(dtype).removeprefix("torch.") for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
ALLOWED = {
    "torch": DTYPES | {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "ChunkStorageMetadata"),
        *("TensorProperties", "_MEM_FORMAT_ENCODING"),
    },
    "pathlib": {"PosixPath"},  # where a checkpoint was written, in those made before 2026-12
    "pathlib._local": {"PosixPath"},
}
"""Names that `.metadata` may use, by module: classes that hold plain values, and torch's word for `strided`."""


def write_tensors(
    directory: Path, tensors: dict[str, Tensor], values: Mapping[str, Tensor], group: dist.ProcessGroup | None
) -> dict[str, FileRecord]:
    """Write this rank's part into `directory`, durable; the files that this rank wrote, by name.

    `tensors` say what part of the whole is here, `values` what is in it now. Every rank of `group` calls it.

    Raises: on every rank, what the first rank that failed has raised.
    """
    files = HashedFiles()
    writer, planner = _Writer(directory, files), _ValuesPlanner(values)
    with _as_first_error(), _alone():
        save(tensors, storage_writer=writer, planner=planner, process_group=group)
    return files.written


def read_tensors(directory: Path, tensors: dict[str, Tensor], files: Mapping[str, FileRecord]) -> None:
    """Fill `tensors`, whichever part of the whole they are, from the checkpoint in `directory`. Every rank calls it.

    Raises: FormatError on every rank if one finds that `.metadata` is not what `files` say, or more than data.
    """
    reader = _Reader(directory)
    on_every_rank(lambda: reader.open_metadata(files))
    with _as_first_error(), _alone():
        load(tensors, storage_reader=reader)


@contextmanager
def _alone() -> Iterator[None]:
    """Without torch's warning that no process group is there, as in `sample` and `import`: none is wanted."""
    if dist.is_initialized():  # filters are of all threads, and a save may be one
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def read_metadata(path: Path, record: FileRecord) -> Metadata:
    """What is in the `.metadata` file at `path`.

    Raises: FormatError if its bytes are not those of `record`, or if it is more than data.
    """
    contents = read_bytes(path)
    if [len(contents), hashlib.sha256(contents).hexdigest()] != record:
        raise FormatError(f"{path} does not match its checksum")
    found = _MetadataUnpickler(io.BytesIO(contents), path).load()
    if not isinstance(found, Metadata):
        raise FormatError(f"{path} holds {type(found).__name__}, not the metadata of a checkpoint: do not trust it")
    return found


class _MetadataUnpickler(pickle.Unpickler):
    """Makes nothing but what is in ALLOWED."""

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """Raises: FormatError for a name that no checkpoint of ours uses."""
        if name not in ALLOWED.get(module, ()):
            raise FormatError(f"{self.path} asks for {module}.{name}, which no checkpoint needs: do not trust it")
        return super().find_class(module, name)


class HashedFiles(FileSystem):
    """Files that torch writes and reads, through storage; `written` tells of those that were written."""

    def __init__(self) -> None:
        self.written: dict[str, FileRecord] = {}
        self.error: UserError | None = None

    @contextmanager
    def create_stream(self, path: str | PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        """A file open for reading ("rb"), or one that will be there, durable, after the block ("wb")."""
        path = Path(path)
        if mode == "rb":
            with open_file(path) as found:
                yield found
            return
        try:
            with hashed_file(path) as file:
                yield file
        except UserError as error:
            self.error = error  # torch's writer of archives does not let it through
            raise
        self.written[path.name] = [file.size_bytes, file.sha256]


class _Writer(FileSystemWriter):
    """One file for each rank, and `.metadata` after all of them."""

    def __init__(self, directory: Path, files: HashedFiles) -> None:
        # no copying ahead: that would wait for all work of the device, from whichever thread
        super().__init__(directory, sync_files=False, per_thread_copy_ahead=0)
        self.fs = self.files = files

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is: the directory is there, and new."""
        return plan

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Raises: what the disk said, where torch makes something else of it."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError:
            if self.files.error is not None:
                raise self.files.error from None
            raise

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write `.metadata`; it says nothing of where it is, so that a checkpoint may be moved."""
        metadata.version, metadata.storage_meta = CURRENT_DCP_VERSION, StorageMeta()
        metadata.storage_data = {result.index: result.storage_data for rank in results for result in rank}
        with self.files.create_stream(Path(self.path) / METADATA_NAME, "wb") as file:
            pickle.dump(metadata, file)


class _Reader(FileSystemReader):
    """Reads what the manifest vouches for."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.fs = HashedFiles()
        self.metadata: Metadata | None = None

    def open_metadata(self, files: Mapping[str, FileRecord]) -> None:
        """Raises: FormatError if `.metadata` is not what `files` say, is more than data, or wants another file."""
        path = Path(self.path) / METADATA_NAME
        if METADATA_NAME not in files:
            raise FormatError(f"{path} is not in the manifest")
        self.metadata = read_metadata(path, files[METADATA_NAME])
        strange = {info.relative_path for info in self.metadata.storage_data.values()} - files.keys()
        if strange:
            raise FormatError(f"{path} wants {sorted(strange)[0]!r}, which is not in the manifest: do not trust it")

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What `open_metadata` found."""
        del args, kwargs
        assert self.metadata is not None
        return self.metadata


class _ValuesPlanner(DefaultSavePlanner):
    """Plans with tensors that know their place in the whole; their values are given apart, as they once were."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """What this rank holds of a tensor."""
        return self.values[index.fqn]


@contextmanager
def _as_first_error() -> Generator[None, None, None]:
    """Raises: instead of torch's list of all ranks' errors, the first of them; every rank has the same list."""
    try:
        yield
    except CheckpointException as found:
        error, _ = found.failures[min(found.failures)]
        raise error from found
