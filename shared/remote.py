"""Directories elsewhere (s3://, hf://, what fsspec knows), copied here before they are read and from here when whole.

Nothing is computed on a file that is not here. A file has its name here once it is as long as is listed elsewhere and
has the sha256 that is known of it: from the index of a dataset, or from the Hugging Face Hub. The index of a dataset
comes last in either direction: where one is, all of the dataset is.
"""

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from shared.directories import exists, make_directory, move, remove_file, written_name
from shared.errors import ConfigError, InputError, UserError
from shared.files import read_bytes, size_of
from shared.format import (
    INDEX_NAME,
    TOKENIZER_NAME,
    documents_path,
    read_index,
    tokens_path,
)
from shared.locks import exclusive
from shared.packing import PACKINGS_NAME
from shared.storage import append_line, read_sealed, sha256_file, sync_file, write_sealed
from shared.terminal import counted, safe_text

WORK_NAME = ".fetch"
ORIGIN_NAME = "origin.json"
KNOWN_NAME = "known"
"""Lines that say of each file here what it was elsewhere."""
HERE = Path("../data")


def place_here(url: str) -> Path:
    """The directory here that stands for `url`: its last part, in ../data.

    Raises: ConfigError if it has none.
    """
    name = PurePosixPath(url).name
    if name in ("", "..") or PurePosixPath(url).parent.name in ("", f"{url.partition(':')[0]}:"):
        raise ConfigError(f"{safe_text(url)} has no directory: {safe_text(url.rstrip('/'))}/NAME is wanted")
    return HERE / name


def copied(url: str, endings: tuple[str, ...] = ("",)) -> Path:
    """The directory here that `url` was copied to, now or before. See `fetch`."""
    fetch(url, place_here(url), endings)
    return place_here(url)


def fetch(url: str, directory: Path, endings: tuple[str, ...] = ("",)) -> None:
    """Bring the files below `url` that end so to `directory`; one that is here and has not changed there is left.

    Raises: ConfigError if there are none or `directory` has files of another place, InputError for a file that is not
    what is known of it, UserError if the other place refuses.
    """
    make_directory(directory)
    with exclusive(directory, "fetch"), _told(url):
        system, root = _system(url)
        if not exists(directory / WORK_NAME) and _has_same(system, root, directory):
            print(f"{safe_text(str(directory))} has the dataset of {safe_text(url)} already")
            return
        _check_origin(url, directory)
        files = {path: info for path, info in _listed(system, root).items() if path.endswith(endings)}
        if not files:
            raise ConfigError(f"{safe_text(url)} has no files{_that_end(endings)}: name a directory that has")
        indexes = [path for path in files if _is_of_dataset(PurePosixPath(path))]
        for path in indexes:
            _bring(system, f"{root}/{path}", directory / WORK_NAME / path)
        checksums = _checksums(directory, indexes)
        known = _known(directory)
        missing = [path for path in files if known.get(path) != _identity(files[path]) or not exists(directory / path)]
        print(f"{counted(len(files), 'file')} at {safe_text(url)}, {len(missing):,} to fetch", flush=True)
        for path in sorted(known.keys() - files.keys()):
            remove_file(directory / path)
        for path in sorted(missing, key=_last_index):
            _fetch(system, root, path, files[path], checksums, directory)


def push(directory: Path, url: str) -> None:
    """Copy the finished dataset in `directory` to `url`, its index last.

    Raises: FormatError if it is not finished, ConfigError if another is there, UserError if the other place refuses.
    """
    fingerprint = read_index(directory).fingerprint
    with _told(url):
        system, root = _system(url)
        if system.exists(f"{root}/{INDEX_NAME}"):
            if not _has_same(system, root, directory):
                raise ConfigError(f"{safe_text(url)} has another dataset: name a place that has none")
            print(f"{safe_text(url)} has dataset {fingerprint[:12]} already")
            return
        files = sorted(_files(directory), key=_last_index)
        for path in files:
            if "file" in system.protocol:
                system.makedirs(system._parent(f"{root}/{path}"), exist_ok=True)
            system.put_file(str(directory / path), f"{root}/{path}")
            if (size := system.info(f"{root}/{path}")["size"]) != size_of(directory / path):
                raise UserError(f"{safe_text(url)} has {size} bytes of {safe_text(path)}: push it again")
    print(f"{counted(len(files), 'file')} of dataset {fingerprint[:12]} are at {safe_text(url)}")


def _has_same(system: Any, root: str, directory: Path) -> bool:
    """Whether one finished dataset is here and there."""
    here, there = directory / INDEX_NAME, f"{root}/{INDEX_NAME}"
    return exists(here) and bool(system.exists(there)) and bool(system.cat_file(there) == read_bytes(here))


def _that_end(endings: Sequence[str]) -> str:
    return f" that end in {', '.join(endings)}" if any(endings) else ""


@contextmanager
def _told(url: str) -> Iterator[None]:
    """What the other place or the way to it refuses, in one line: each kind of place has errors of its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{safe_text(url)} was not copied ({safe_text(words)}): run it again to go on") from error


def _system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises: ConfigError if the package that knows it is not installed, or none does.
    """
    try:
        system, root = importlib.import_module("fsspec.core").url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{safe_text(url)}: {safe_text(str(error))}; pip install 'argonne[s3]' for s3://") from None
    system.invalidate_cache()
    return system, root.rstrip("/")


def _listed(system: Any, root: str) -> dict[str, dict[str, Any]]:
    """The files below `root` by their paths from there, those with a hidden name left out."""
    found = {str(path)[len(root) + 1 :]: info for path, info in system.find(root, detail=True).items()}
    return {path: info for path, info in found.items() if _is_plain(path)}


def _is_plain(path: str) -> bool:
    """Whether it stays in its directory, and no part of it is hidden."""
    return bool(path) and not any(part in ("", "..") or part.startswith(".") for part in path.split("/"))


def _is_of_dataset(path: PurePosixPath) -> bool:
    """Whether it is the index of a dataset: of the only one, its validation split, or one of several."""
    return path.name == INDEX_NAME and PACKINGS_NAME not in path.parts


def _files(directory: Path) -> list[str]:
    """The files of a dataset that are to be copied."""
    paths = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    return [path for path in paths if _is_plain(path) and not written_name(path)]


def _last_index(path: str) -> tuple[bool, int, str]:
    """Sort key: what says that the rest is whole comes after it, the outermost at the end."""
    is_index = PurePosixPath(path).name == INDEX_NAME
    return is_index, -path.count("/") if is_index else 0, path


def _check_origin(url: str, directory: Path) -> None:
    path = directory / WORK_NAME / ORIGIN_NAME
    if exists(path):
        origin = read_sealed(path)["url"]
        if origin != url:
            raise ConfigError(
                f"{safe_text(str(directory))} has files of {safe_text(origin)}, not of {safe_text(url)}: "
                "name another directory, or move that one away"
            )
        return
    if _files(directory):
        raise ConfigError(f"{safe_text(str(directory))} is not empty: name a directory that is")
    make_directory(path.parent)
    write_sealed(path, {"url": url})


def _known(directory: Path) -> dict[str, str]:
    path = directory / WORK_NAME / KNOWN_NAME
    lines = read_bytes(path).splitlines() if exists(path) else []
    return dict(map(json.loads, lines))


def _identity(info: Mapping[str, Any]) -> str:
    """What changes with a file elsewhere: its size, time, and tag, whatever is listed."""
    return hashlib.sha256(repr(sorted((key, str(value)) for key, value in info.items())).encode()).hexdigest()


def _checksums(directory: Path, indexes: Sequence[str]) -> dict[str, str]:
    """What the files of a dataset are to be, by its indexes, which were brought first.

    Raises: ConfigError if it is another than the one that is here.
    """
    found = dict[str, str]()
    for path in indexes:
        index = read_index((directory / WORK_NAME / path).parent)
        if exists(directory / path) and read_index((directory / path).parent).fingerprint != index.fingerprint:
            raise ConfigError(f"{safe_text(str(directory))} has another dataset by now: name another directory")
        inner = Path(path).parent
        found[(inner / TOKENIZER_NAME).as_posix()] = index.tokenizer.sha256
        for number, shard in enumerate(index.shards):
            found[tokens_path(inner, number).as_posix()] = shard.tokens_sha256
            found[documents_path(inner, number).as_posix()] = shard.documents_sha256
    return found


def _bring(system: Any, source: str, path: Path) -> None:
    make_directory(path.parent)
    system.get_file(source, str(path))


def _fetch(
    system: Any, root: str, path: str, info: Mapping[str, Any], checksums: Mapping[str, str], directory: Path
) -> None:
    """One file, under its name once it is what it should be."""
    print(f"{safe_text(path)}, {info['size'] / 1e6:,.1f} MB", flush=True)
    partial = directory / path
    partial = partial.with_name(f".{partial.name}.part")
    _bring(system, f"{root}/{path}", partial)
    if size_of(partial) != info["size"]:
        raise InputError(f"{safe_text(path)} came with {size_of(partial)} bytes, {info['size']} are listed: try again")
    wanted = checksums.get(path) or (info.get("lfs") or {}).get("sha256")
    if wanted is not None and (found := sha256_file(partial)) != wanted:
        remove_file(partial)
        raise InputError(f"{safe_text(path)} has sha256 {found[:12]}, {wanted[:12]} is wanted: it was changed there")
    sync_file(partial)
    move(partial, directory / path)
    append_line(directory / WORK_NAME / KNOWN_NAME, json.dumps([path, _identity(info)]))
