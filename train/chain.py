"""The hashes of a run: input files, dataset, tokenizer, recipe, newest checkpoint, and which of them fit together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import FormatError, StorageError
from shared.format import TOKENIZER_NAME, Index, read_index
from shared.storage import SEAL, read_sealed, seal, sha256_file
from train.checkpoint_directory import MANIFEST_NAME, checkpoints, step_of
from train.data_sources import NAME
from train.datasets import Dataset, Datasets
from train.recorded import Recorded, read_run, section
from train.run_files import CHECKPOINTS_NAME, RUN_NAME

MOST_INPUTS = 100


@dataclass(frozen=True)
class Link:
    """One thing by its hash, and how it is known to belong to the others; `fits` is None where nobody looked."""

    what: str
    hash: str
    note: str
    fits: bool | None = None
    parts: list[tuple[str, str]] = field(default_factory=list)
    """What it is made of, by name and hash."""


def read_with_chain(run: Path) -> tuple[Recorded, list[Link]]:
    """What a run has written down, and its hashes.

    Raises: FormatError if it is no run.
    """
    path, manifest, problem = newest_manifest(run)
    step = manifest.get("step")
    recorded = read_run(run, [step] if isinstance(step, int) else [])
    identity = section(recorded.about, "identity")
    links = [
        *_dataset(recorded, identity),
        _tokenizer(run, identity),
        Link("recipe", seal(dict(recorded.recipe)) if recorded.recipe else "", f"with all its values, in {RUN_NAME}"),
        _checkpoint(path, manifest, problem, identity, recorded),
    ]
    return recorded, links


def newest_manifest(run: Path) -> tuple[Path | None, Mapping[str, Any], str]:
    """Where the newest checkpoint is, its manifest, and why that cannot be read."""
    directory = run / CHECKPOINTS_NAME
    paths = checkpoints(directory) if directory.is_dir() else []
    if not paths:
        return None, {}, "none yet"
    try:
        return paths[-1], read_sealed(paths[-1] / MANIFEST_NAME), ""
    except FileNotFoundError:
        return paths[-1], {}, f"it has no {MANIFEST_NAME}"
    except (FormatError, StorageError) as error:
        return paths[-1], {}, str(error)


def _dataset(recorded: Recorded, identity: Mapping[str, Any]) -> list[Link]:
    fingerprint = str(identity.get("dataset", ""))
    told = [section(event, "reads").get("tokens") for event in recorded.events if event["event"] == "start"]
    named = [tokens for tokens in told if isinstance(tokens, str)]
    index, note = (
        _index(Path(named[-1]), identity.get("sources"), fingerprint)
        if named
        else (None, "the run does not tell where its dataset is")
    )
    links = [] if index is None else [_inputs(index)]
    sources = identity.get("sources")
    if isinstance(sources, dict):
        links += [Link(f"source {name}", str(found), note) for name, found in sources.items()]
    dataset = Link("dataset", fingerprint, note, None if index is None else index.fingerprint == fingerprint)
    others = {"packing": "how it is cut into chunks", "validation": "held-out texts"}
    return [*links, dataset, *(Link(n, str(identity[n]), note) for n, note in others.items() if identity.get(n))]


def _index(tokens: Path, sources: Any, fingerprint: str) -> tuple[Index | None, str]:
    """The index of the dataset or of all sources, if it is there and is the run's, and what there is to say of it."""
    names = [*sources] if isinstance(sources, dict) and sources else [""]
    if names != [""] and not all(map(NAME.fullmatch, names)):
        return None, f"{RUN_NAME} has sources that no directory may be called after"
    try:
        index = Datasets(tuple(Dataset(name, tokens / name, read_index(tokens / name)) for name in names)).index
    except (FormatError, StorageError) as error:
        return None, f"it is not where it was: {error}"
    if index.fingerprint != fingerprint:
        return None, f"{tokens} is another dataset now: {index.fingerprint[:12]}"
    return index, f"{len(index.shards):,} shards, {index.num_tokens:,} tokens in {tokens}"


def _inputs(index: Index) -> Link:
    parts = [(source.path, source.identity) for source in index.sources]
    digest = seal({"inputs": parts})
    size_bytes = sum(source.size_bytes for source in index.sources)
    note = f"{len(parts):,} files, {size_bytes:,} bytes; the hash is over their names and hashes"
    return Link("inputs", digest, note, True, parts[:MOST_INPUTS])


def _tokenizer(run: Path, identity: Mapping[str, Any]) -> Link:
    wanted, path = str(identity.get("tokenizer", "")), run / TOKENIZER_NAME
    if not path.is_file():
        return Link("tokenizer", wanted, f"the run has no {TOKENIZER_NAME}")
    is_same = sha256_file(path) == wanted
    return Link("tokenizer", wanted, f"{TOKENIZER_NAME} of the run {'has' if is_same else 'does not have'} it", is_same)


def _checkpoint(
    path: Path | None, manifest: Mapping[str, Any], problem: str, identity: Mapping[str, Any], recorded: Recorded
) -> Link:
    what = "newest checkpoint"
    if path is None or problem:
        return Link(f"{what}{f' {path.name}' if path else ''}", "", problem, None if path is None else False)
    other = [name for name in ("dataset", "tokenizer", "packing") if manifest.get(name) != identity.get(name)]
    digest = recorded.digests.get(step_of(path))
    note = f"its manifest; step {step_of(path):,}, {len(section(manifest, 'files'))} files, which are not read here"
    if other:
        return Link(f"{what} {path.name}", str(manifest[SEAL]), f"{note}; it is of another {', '.join(other)}", False)
    if digest is None:
        return Link(f"{what} {path.name}", str(manifest[SEAL]), f"{note}; metrics.jsonl has no such step", None)
    is_same = digest == manifest.get("data_digest")
    told = "the data up to it is" if is_same else "the data up to it is not"
    return Link(f"{what} {path.name}", str(manifest[SEAL]), f"{note}; {told} that of metrics.jsonl", is_same)
