"""What is in a dataset: its index as tables, some chunks with their documents, and both as JSON for programs.

Everything that comes from documents or file names is escaped before it is shown: text can command a terminal.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from preprocess.chunks import Chunk, Piece
from preprocess.inspection import LEFT_OUT, NOT_VERIFIED, VERIFIED, Inspection, spoken
from preprocess.pack import summary
from preprocess.survey import Spread
from shared.columns import to_columns
from shared.config import unstructure
from shared.format import Source
from shared.packing import Packing
from shared.terminal import safe_text

PACKED_COUNTS = ("num_chunks", "num_pieces", "num_targets", "num_padding", "num_left_out", "tokens_left_out")
MAX_LINES = 40
MOST_TOKENS = 12


def show(found: Inspection) -> None:
    """Print a dataset as tables."""
    console = Console(width=None if Console().is_terminal else 160, highlight=False)
    table = Table.grid(padding=(0, 2))
    for name, value in (facts(found) | counted(found)).items():
        table.add_row(Text(name), Text(safe_text(value)))
    console.print(table)
    console.print(_source_table(found))
    console.print(_shard_table(found))
    if found.index.skipped:
        console.print(_skipped_table(found))


def document(found: Inspection) -> dict[str, Any]:
    """All of a dataset for programs."""
    index, counted = found.index, found.survey
    plain = unstructure(replace(index, sources=[], shards=[]))
    sources = zip(_records(to_columns(Source, index.sources)), found.sources.to_dicts(), strict=True)
    return {
        **plain,
        "sources": [source | sums for source, sums in sources],
        "shards": found.shards.to_dicts(),
        "totals": found.totals,
        "packings": [_packing_document(name.method, name.length, packing) for name, packing in found.packings],
        "problems": found.problems,
        "seed": found.seed,
        "tokens": {
            "num_counted": counted.num_ids,
            "is_all": counted.has_all_ids,
            "most_frequent": [use._asdict() for use in found.most_frequent()],
            "unused": found.unused(),
        },
        "documents": {
            "num_counted": counted.num_documents,
            "is_all": counted.has_all_documents,
            "lengths": counted.lengths and asdict(counted.lengths),
            "chunks": counted.chunks and asdict(counted.chunks),
        },
    }


def show_chunk(chunk: Chunk) -> None:
    """Print a chunk."""
    print(f"chunk {chunk.number:,}: offset {chunk.offset:,} of shard {chunk.shard}, {len(chunk.ids):,} ids")
    for piece in chunk.documents:
        whole = "whole" if piece.stop - piece.start == piece.num_tokens else "part"
        place = f"tokens {piece.start:,} to {piece.stop:,} of {piece.num_tokens:,} ({whole})"
        print(f"\ndocument {safe_text(piece.source)} row {piece.row:,}: {place}")
        print(f"  from  {safe_text(origin(piece))}")
        print(f"  ids   {' '.join(map(str, piece.ids))}")
        # A newline is spelled out and then also made, behind a margin that no text can fake.
        print("  text  " + "\n      | ".join(safe_text(line) for line in piece.text.replace("\n", "\\n\n").split("\n")))
    if chunk.num_padding:
        print(f"\npadding: {chunk.num_padding:,} end-of-document ids, never a target")


def origin(piece: Piece) -> str:
    """What the input row of a document says of it, in a line, or why that is not known."""
    named = {"url": piece.url, "date": piece.date, "id": piece.id}
    told = ", ".join(f"{name} {value}" for name, value in named.items() if value)
    return piece.problem or told or "its input has no url, date or id"


def facts(found: Inspection) -> dict[str, str]:
    """What there is to say of a dataset in a line each, by name; nothing in it is made safe to show."""
    index, sums, tokenizer = found.index, found.totals, found.index.tokenizer
    left_out = ", ".join(f"{sums[name]:,} {spoken(name)}" for name in LEFT_OUT if sums[name] or name in LEFT_OUT[:2])
    end = f"{tokenizer.end_of_document} = {tokenizer.end_of_document_id:,}"
    rows = {
        "dataset": str(found.directory),
        "fingerprint": index.fingerprint,
        "inputs": f"{len(index.sources):,} files, column {index.text_column!r}",
        "shards": f"{len(index.shards):,} of up to about {index.shard_bytes / 1e6:,.0f} MB of text; {state(found)}",
        "rows": f"{sums['num_rows']:,}",
        "documents": f"{sums['num_documents']:,} ({left_out} rows left out)",
        "text": f"{sums['text_bytes'] / 1e6:,.1f} MB, {found.bytes_per_token:.2f} bytes per token",
        "tokens": f"{index.num_tokens:,}",
        "chunks": f"{sums['num_chunks']:,} of {index.chunk_length:,}",
        "padding": f"{sums['num_padding']:,} ids, never a target",
        "dtype": index.dtype,
        "tokenizer": f"{tokenizer.vocab_size:,} ids, end of document {end}, sha256 {tokenizer.sha256[:12]}",
        **found.settings(),
    }
    if index.skipped:
        rows["left out"] = f"{len(index.skipped):,} input files, with {sums['num_skipped']:,} rows that were counted"
    for name, packing in found.packings:
        line = f"cannot be used: {packing}" if isinstance(packing, str) else summary(packing)
        rows[f"packing {name.directory.name}"] = line
    if found.tokenizer_problem:
        rows["texts"] = found.tokenizer_problem
    return rows


def state(found: Inspection) -> str:
    """Whether the files of the shards are there, and whether they were read."""
    states = found.shards["state"]
    if found.is_verified:
        problems = len(found.problems) + sum(text != VERIFIED for text in states)
        return f"{problems:,} problems" if problems else "all files are as their checksums say"
    if not (wrong := sum(text != NOT_VERIFIED for text in states)):
        return NOT_VERIFIED
    return (
        "all missing or damaged" if wrong == len(states) else f"{wrong:,} missing or damaged, the others not verified"
    )


def looked_at(number: int, total: int, what: str, seed: int) -> str:
    """How much was looked at."""
    if number == total:
        return f"all {total:,} {what}"
    return f"{number:,} of {total:,} {what}, drawn with seed {seed}"


def middle(rows: Sequence[Any], most: int) -> Iterator[Any]:
    """The first and the last of `rows`, `most` in all; between them, how many are not shown.

    >>> list(middle([1, 2, 3, 4, 5], 2))
    [1, 3, 5]
    """
    if len(rows) <= most:
        yield from rows
        return
    yield from rows[: most // 2]
    yield len(rows) - most // 2 * 2
    yield from rows[len(rows) - most // 2 :]


def counted(found: Inspection) -> dict[str, str]:
    """What was found by looking at documents and ids, by name."""
    seen, sums = found.survey, found.totals
    if not seen.lengths or not seen.num_ids or not seen.chunks:
        return {"counted": "nothing: no shard that holds a document can be read"}
    unused, uses = found.unused(), found.most_frequent()[:MOST_TOKENS]
    several = sum(bin_.count for bin_ in seen.chunks.bins if bin_.low > 1) / seen.num_documents
    return {
        "lengths": f"{_spread(seen.lengths)} tokens, the end of a document included; {several:.1%} of documents in "
        f"more than one chunk ({looked_at(seen.num_documents, sums['num_documents'], 'documents', found.seed)})",
        "frequent": ", ".join(f'"{use.text}" {use.share:.1%}' for use in uses),
        "never used": f"{len(unused):,} ids ({looked_at(seen.num_ids, found.index.num_tokens, 'ids', found.seed)})",
    }


def _spread(spread: Spread) -> str:
    low, median, high = (spread.quantiles[name] for name in ("0.1", "0.5", "0.9"))
    middle_80 = f"80% in {low:,} to {high:,}"
    return f"{spread.smallest:,} to {spread.largest:,}, median {median:,}, mean {spread.mean:,.0f}, {middle_80}"


def _records(columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _packing_document(method: str, length: int, packing: Packing | str) -> dict[str, Any]:
    if isinstance(packing, str):
        return {"method": method, "length": length, "problem": packing}
    return {**asdict(packing), "totals": {count: packing.total(count) for count in PACKED_COUNTS}}


def _source_table(found: Inspection) -> Table:
    counts = ("num_tokens", "num_chunks", "num_padding")
    left_out = [name for name in LEFT_OUT if found.sources[name].sum()]
    shown = ("num_shards", "num_rows", "num_documents", *left_out, *counts)
    rows = [
        (source.path, *row)
        for source, row in zip(found.index.sources, found.sources.select(shown).iter_rows(), strict=True)
    ]
    return _table("input", [spoken(name) for name in shown], rows)


def _shard_table(found: Inspection) -> Table:
    paths = to_columns(Source, found.index.sources)["path"]
    shown = ("source", "first_row", "num_rows", "num_documents", "num_tokens", "num_chunks", "num_padding", "state")
    rows = [
        (f"{number:05d}", paths[source], f"{first:,} to {first + rows - 1:,}" if rows else "none", *counts)
        for number, (source, first, rows, *counts) in enumerate(found.shards.select(shown).iter_rows())
    ]
    return _table("shard", ["input", "rows", *map(spoken, shown[3:])], rows, words=("input", "state"))


def _table(first: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], words: Iterable[str] = ()) -> Table:
    """A table of words on the left and numbers on the right; a long one is cut in the middle."""
    table = Table(first, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in words else "right")
    for row in middle(rows, MAX_LINES):
        if isinstance(row, int):
            more = f"{row:,} more (all of them with --json)"
            table.add_row(*(("...", more) if columns[0] in words else (f"... {more}",)))
        else:
            table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else safe_text(cell)) for cell in row))
    return table


def _skipped_table(found: Inspection) -> Table:
    table = Table("left out", "bytes", "reason", title_justify="left")
    for source in found.index.skipped[:MAX_LINES]:
        table.add_row(Text(safe_text(source.path)), f"{source.size_bytes:,}", Text(safe_text(source.reason)))
    if len(found.index.skipped) > MAX_LINES:
        table.add_row(Text(f"... {len(found.index.skipped) - MAX_LINES:,} more (all of them with --json)"))
    return table
