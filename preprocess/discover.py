"""The inputs of a build: which files there are, what each holds, and what is left out."""

from dataclasses import dataclass
from pathlib import Path

from preprocess.config import BuildSettings
from preprocess.select import Selector, columns_read
from preprocess.skip import read_footers
from preprocess.sources import Footer, find_sources, has_footer, read_rows
from shared.errors import InputError
from shared.format import SkippedSource
from shared.terminal import safe_text

MAX_SHOWN = 10


@dataclass(frozen=True)
class Inputs:
    """Input files under `root`: the footers of those that can be read, in order, and those that are left out."""

    root: Path
    footers: list[Footer]
    skipped: list[SkippedSource]


def discover(data: str, settings: BuildSettings, token_counts: str | None = None) -> Inputs:
    """The inputs that `data` (directory, glob or file) names; prints what was found.

    Raises: InputError if there is no text, or a file that cannot be read and may not be left out; ConfigError if rows
    cannot be selected as asked.
    """
    others = columns_read(settings.selection, token_counts)
    root, files = find_sources(data)
    unknown = [file for file in files if not has_footer(file)]
    if unknown:
        size_gb = sum(file.stat().st_size for file in unknown) / 1e9
        print(f"reading {len(unknown):,} files of JSON lines ({size_gb:,.2f} GB) once to count their rows", flush=True)
    skip_bad = settings.on_bad_file == "skip"
    footers, skipped = read_footers(files, root, settings.text_column, others, skip_bad=skip_bad)
    for source in skipped[:MAX_SHOWN]:
        print(safe_text(f"leaving out {source.path}: {source.reason}"), flush=True)
    if not footers:
        reason = safe_text(f"{skipped[0].path}: {skipped[0].reason}")
        raise InputError(f"{safe_text(data)} has no file that can be read, the first is {reason}: name other input")
    num_rows = sum(footer.num_rows for footer in footers)
    size_mb = sum(footer.text_bytes for footer in footers) / 1e6
    ends = footers[0].path if len(footers) == 1 else f"{footers[0].path} ... {footers[-1].path}"
    files_found = "1 file" if len(footers) == 1 else f"{len(footers):,} files"
    left_out = f" ({len(skipped):,} left out)" if skipped else ""
    found = f"found {files_found}{left_out}, {num_rows:,} rows, {size_mb:,.1f} MB of text in {data}"
    print(safe_text(f"{found}, in natural order: {ends}"), flush=True)
    if not num_rows:
        raise InputError(f"{safe_text(data)} has no rows: name an input that holds text")
    _try_selection(root, footers, settings)
    return Inputs(root, footers, skipped)


def _try_selection(root: Path, footers: list[Footer], settings: BuildSettings) -> None:
    """Select among the first rows, so that a condition that does not fit the columns is told before anything else."""
    selector = Selector(settings.selection)
    if not selector.columns:
        return
    footer = next(footer for footer in footers if footer.num_rows)
    number = next(number for number, group in enumerate(footer.row_groups) if group.num_rows)
    rows = read_rows(root / footer.path, range(number, number + 1), settings.text_column, selector.columns)
    selector.fates(next(rows), 0)
