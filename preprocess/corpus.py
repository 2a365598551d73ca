"""A real corpus from what every Python installation carries, in the shape of FineWeb's parquet files.

It needs no network: the source text and the documentation of the standard library and of the installed packages are
tens of megabytes of real prose and code, enough to try everything on.
"""

import hashlib
import math
import os
import sysconfig
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shared.directories import exists, is_directory, listing, make_directory, move, remove_tree
from shared.errors import ConfigError
from shared.storage import write_file
from shared.terminal import safe_text

SUFFIXES = (".py", ".rst", ".md", ".txt")
METADATA_NAME = "METADATA"
MIN_BYTES, MAX_BYTES = 200, 256 << 10
ROWS_PER_GROUP = 100
MIN_FILES, FILE_BYTES = 3, 64 << 20
DUMP = "python-installation"
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("text", "id", "dump", "url", "date", "file_path", "language")]
    + [("language_score", pa.float64()), ("token_count", pa.int64())]
)


@dataclass(frozen=True)
class Document:
    """A text and where it was found: a path relative to the installation's library directories."""

    path: str
    text: str


def sample_corpus(directory: Path, size_bytes: int) -> None:
    """About `size_bytes` of this installation's text in `directory`, whole or absent; an earlier harvest is kept.

    Raises: ConfigError if `directory` holds something else.
    """
    name = safe_text(str(directory))
    there = listing(directory) if is_directory(directory) else []
    if any(path.suffix == ".parquet" for path in there):
        print(f"{name} already has a corpus: nothing to do")
        return
    if exists(directory) and (there or not is_directory(directory)):
        raise ConfigError(f"{name} is not empty and has no *.parquet file: name another directory")
    documents = harvest(library_roots(), size_bytes)
    if not documents:
        raise ConfigError(f"no text for a corpus of {size_bytes:,} bytes was found: ask for more with --megabytes")
    _write(directory, documents)
    size_mb = sum(len(document.text.encode()) for document in documents) / 1e6
    print(f"{name}: {len(documents):,} documents, {size_mb:,.1f} MB of text from this Python installation")


def library_roots() -> dict[str, Path]:
    """Where this installation keeps its standard library and its packages."""
    paths = sysconfig.get_paths()
    return {"stdlib": Path(paths["stdlib"]), "site-packages": Path(paths["purelib"])}


def harvest(roots: dict[str, Path], size_bytes: int) -> list[Document]:
    """Documents under `roots` until they have `size_bytes`, in an order that mixes them and never changes."""
    found = {path: file for label, root in roots.items() for path, file in _files(label, root)}
    documents, total = [], 0
    for path in sorted(found, key=lambda path: hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()):
        if total >= size_bytes:
            break
        if (text := _read(found[path])) is not None:
            documents.append(Document(path, text))
            total += len(text.encode())
    return documents


def _files(label: str, root: Path) -> Iterator[tuple[str, Path]]:
    for folder, folders, names in os.walk(root):
        # Packages often live inside the standard library's directory, and are a root of their own.
        folders[:] = [name for name in folders if name not in ("__pycache__", "site-packages", "dist-packages")]
        for name in names:
            if name.endswith(SUFFIXES) or name == METADATA_NAME:
                file = Path(folder, name)
                yield f"{label}/{file.relative_to(root).as_posix()}", file


def _read(path: Path) -> str | None:
    """The text of the file, or None if it is too short, too long or not UTF-8."""
    if not MIN_BYTES <= path.stat().st_size <= MAX_BYTES:
        return None
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        return None


def _write(directory: Path, documents: list[Document]) -> None:
    """Write the files under a temporary name and move them into place together."""
    temporary = directory.with_name(directory.name + ".tmp")
    if exists(temporary):
        remove_tree(temporary)
    make_directory(temporary)
    size_bytes = sum(len(document.text) for document in documents)
    num_files = max(MIN_FILES, math.ceil(size_bytes / FILE_BYTES))
    per_file = math.ceil(len(documents) / num_files)
    for number in range(num_files):
        sink = pa.BufferOutputStream()
        table = _table(documents[number * per_file : (number + 1) * per_file])
        pq.write_table(table, sink, row_group_size=ROWS_PER_GROUP, compression="zstd")
        write_file(temporary / f"000_{number:05d}.parquet", [memoryview(sink.getvalue())])
    move(temporary, directory)


def _table(documents: list[Document]) -> pa.Table:
    rows = [
        {
            "text": document.text,
            "id": f"<urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, document.path)}>",
            "dump": DUMP,
            "url": f"file:{document.path}",
            "date": "1970-01-01T00:00:00Z",  # when a package was installed must not change the corpus
            "file_path": document.path,
            "language": "en",
            "language_score": 1.0,
            "token_count": max(1, len(document.text) // 4),
        }
        for document in documents
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)
