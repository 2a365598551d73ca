"""Parquet files of a dataset on the Hugging Face Hub, brought here: each is checked before it has its name.

The first download finds out which commit `revision` is and keeps to it (.download/pin.json): what is added to the Hub
later does not mix in. A file is fetched into .download, from where a killed download goes on, compared with the sha256
that the Hub lists, and only then moved beside the others. Where the Hub is, `HF_ENDPOINT` says.
"""

import importlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from preprocess.sources import natural_key
from shared.directories import exists, make_directory, move, remove_file
from shared.errors import ConfigError, FormatError, InputError, UserError
from shared.files import size_of
from shared.locks import exclusive
from shared.storage import read_sealed, sha256_file, sync_file, write_sealed
from shared.terminal import safe_text

WORK_NAME = ".download"
PIN_NAME = "pin.json"
TRIES = 3
"""Of a file whose bytes are not those that the Hub lists."""


@dataclass(frozen=True)
class Wanted:
    """A file as the Hub lists it."""

    path: str
    size_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """Without its folder."""
        return PurePosixPath(self.path).name


def chosen(files: Sequence[Wanted], part: str) -> list[Wanted]:
    """Those that `part`, written as a slice of Python or as one number, takes.

    >>> [file.path for file in chosen([Wanted(name, 1, "") for name in "abc"], "1:")]
    ['b', 'c']

    Raises: ConfigError if it is neither, or takes none.
    """
    words = part.split(":")
    try:
        if len(words) > 2:
            raise ValueError
        numbers = [int(word) if word else None for word in words]
    except ValueError:
        raise ConfigError(f"files {part!r} is no range: first:end, as in 0:4, is wanted") from None
    first = numbers[0] or 0
    if len(numbers) == 1:
        numbers = [first, first + 1 or None]
    taken = list(files[slice(*numbers)])
    if not taken:
        raise ConfigError(f"files {part} takes none of the {len(files)} files that are there: lower it")
    return taken


def download(repository: str, folder: str, revision: str, part: str, out: Path) -> None:
    """Bring the files `part` of `folder` to `out`; one that is there is left.

    Raises: ConfigError for files that are not there or another commit than before, UserError if the Hub refuses,
    InputError if what it sends is not what it lists.
    """
    hub = _hub()
    make_directory(out)
    with exclusive(out, "download"), _told(repository):
        commit = _pinned(hub, repository, folder, revision, out)
        files = chosen(_files(hub, repository, folder, commit), part)
        missing = [file for file in files if not _is_there(out, file)]
        _check_room(out, missing)
        print(f"{len(files)} files at {safe_text(repository)}@{commit[:12]}, {len(missing)} to fetch", flush=True)
        for number, file in enumerate(missing, 1):
            print(f"{number}/{len(missing)} {safe_text(file.name)}, {file.size_bytes / 1e6:,.1f} MB", flush=True)
            _fetch(hub, repository, commit, file, out)


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError:
        raise ConfigError("huggingface_hub is not installed: pip install 'argonne[hub]'") from None


@contextmanager
def _told(repository: str) -> Iterator[None]:
    """What the Hub or the way to it refuses, in one line."""
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        yield
    except (errors.HTTPError, errors.EntryNotFoundError, errors.HFValidationError, OSError) as error:
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        name = safe_text(repository)
        raise UserError(f"{name} was not downloaded ({safe_text(words)}): run the same command to go on") from error


def _pinned(hub: Any, repository: str, folder: str, revision: str, out: Path) -> str:
    """The commit that the files in `out` are of."""
    path = out / WORK_NAME / PIN_NAME
    asked = {"repository": repository, "folder": folder, "revision": revision}
    if exists(path):
        pinned = read_sealed(path)
        for name, value in asked.items():
            if pinned[name] != value:
                raise ConfigError(
                    f"{safe_text(str(out))} has files of {name} {safe_text(str(pinned[name]))}, now {safe_text(value)} "
                    "is asked for: name another directory"
                )
        return str(pinned["commit"])
    commit = str(hub.HfApi().repo_info(repository, repo_type="dataset", revision=revision).sha)
    make_directory(path.parent)
    write_sealed(path, {**asked, "commit": commit})
    return commit


def _files(hub: Any, repository: str, folder: str, commit: str) -> list[Wanted]:
    """The parquet files of a folder, in natural order."""
    tree = hub.HfApi().list_repo_tree(repository, folder, revision=commit, repo_type="dataset")
    found = [entry for entry in tree if isinstance(entry, hub.RepoFile) and entry.path.endswith(".parquet")]
    for entry in found:
        if entry.lfs is None:
            raise FormatError(f"the Hub lists no sha256 of {safe_text(entry.path)}: it cannot be checked")
    files = [Wanted(entry.path, entry.size, entry.lfs.sha256) for entry in found]
    if not files:
        raise ConfigError(f"{safe_text(repository)} has no parquet files in {safe_text(folder)}: give another CRAWL")
    return sorted(files, key=lambda file: natural_key(file.path))


def _is_there(out: Path, file: Wanted) -> bool:
    """Whether it was brought here before; it got its name when it was checked."""
    return exists(out / file.name) and size_of(out / file.name) == file.size_bytes


def _check_room(out: Path, missing: Sequence[Wanted]) -> None:
    """Raises: ConfigError if the disk cannot hold what is to be fetched; what a killed download left counts as free."""
    begun = sum(path.stat().st_size for path in (out / WORK_NAME).rglob("*") if path.is_file())
    free_bytes = shutil.disk_usage(out).free + begun
    wanted_bytes = sum(file.size_bytes for file in missing)
    if wanted_bytes > free_bytes:
        raise ConfigError(
            f"{safe_text(str(out))} has {free_bytes / 1e9:,.2f} GB free, {wanted_bytes / 1e9:,.2f} GB are wanted: "
            "free some, or give fewer FILES"
        )


def _fetch(hub: Any, repository: str, commit: str, file: Wanted, out: Path) -> None:
    """Raises: InputError if what comes is again and again not what is listed."""
    partial, found = out / WORK_NAME / f"{file.name}.{file.sha256[:12]}.part", ""
    for _ in range(TRIES):
        _receive(hub, repository, commit, file, partial)
        found = sha256_file(partial)
        if found == file.sha256:
            sync_file(partial)
            move(partial, out / file.name)
            return
        remove_file(partial)
        print(f"{safe_text(file.name)} has not the sha256 that the Hub lists: fetching it again", flush=True)
    raise InputError(
        f"{safe_text(file.name)} came {TRIES} times with another sha256 ({found[:12]}) than the Hub lists "
        f"({file.sha256[:12]}): something on the way changes it"
    )


def _receive(hub: Any, repository: str, commit: str, file: Wanted, partial: Path) -> None:
    """All bytes of a file, from where `partial` ends on: `hf_hub_download` of 2.x begins anew after a kill."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if exists(partial) and size_of(partial) > file.size_bytes:
        remove_file(partial)
    url = hub.hf_hub_url(repository, file.path, repo_type="dataset", revision=commit)
    with partial.open("ab") as stream:
        http_get(url, stream, resume_size=stream.tell(), headers=build_hf_headers(), expected_size=file.size_bytes)
