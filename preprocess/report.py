"""What is in a dataset: its index as a table, one chunk with its documents, and both as JSON for programs.

Everything that comes from documents or file names is escaped before it is shown: text can command a terminal.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from preprocess.pack import summary
from preprocess.plan import index_settings
from preprocess.tokenizer import load_tokenizer
from shared.errors import ConfigError, FormatError
from shared.format import TOKENIZER_NAME, Index, Selection, num_chunks, open_documents, open_tokens, read_index
from shared.packing import PackingName, packing_names, read_packing
from shared.terminal import safe_text

LEFT_OUT = ("num_null", "num_empty", "num_filtered", "num_duplicate", "num_other_split", "num_skipped")
ROWS = ("num_rows", "num_documents", *LEFT_OUT)
COUNTS = (*ROWS, "read_bytes", "text_bytes", "rejected_bytes", "num_tokens", "num_chunks", "num_padding")
PACKED_COUNTS = ("num_chunks", "num_pieces", "num_targets", "num_padding", "num_left_out", "tokens_left_out")
MAX_LINES = 40


@dataclass(frozen=True)
class Piece:
    """The part of a document that is in a chunk: tokens `start` to `stop` of the document's `num_tokens`."""

    source: str
    row: int
    start: int
    stop: int
    num_tokens: int
    ids: list[int]
    text: str


@dataclass(frozen=True)
class Chunk:
    """One chunk: `num_padding` of its ids stand behind the shard's last document."""

    number: int
    shard: int
    offset: int
    num_padding: int
    ids: list[int]
    documents: list[Piece]


def inspect(directory: Path, *, as_json: bool) -> None:
    """Print what the dataset in `directory` holds."""
    index = read_index(directory)
    sources = per_source(index)
    if as_json:
        document = asdict(index) | {"shards": [asdict(shard) for shard in index.shards]}
        document["sources"] = [
            asdict(source) | row for source, row in zip(index.sources, sources.to_dicts(), strict=True)
        ]
        packings = [_packing_document(name, index) for name in packing_names(directory)]
        print(json.dumps({**document, "totals": totals(index), "packings": packings}))
        return
    console = Console(width=None if Console().is_terminal else 160, highlight=False)
    console.print(_facts(directory, index))
    console.print(_source_table(index, sources))
    if index.skipped:
        console.print(_skipped_table(index))


def inspect_chunk(directory: Path, number: int, *, as_json: bool) -> None:
    """Print chunk `number`, counted over all shards in natural order.

    Raises: ConfigError if there is no such chunk.
    """
    chunk = read_chunk(directory, number)
    if as_json:
        print(json.dumps(asdict(chunk)))
        return
    print(f"chunk {number:,}: offset {chunk.offset:,} of shard {chunk.shard}, {len(chunk.ids):,} ids")
    for piece in chunk.documents:
        whole = "whole" if piece.stop - piece.start == piece.num_tokens else "part"
        place = f"tokens {piece.start:,} to {piece.stop:,} of {piece.num_tokens:,} ({whole})"
        print(f"\ndocument {safe_text(piece.source)} row {piece.row:,}: {place}")
        print(f"  ids   {' '.join(map(str, piece.ids))}")
        # A newline is spelled out and then also made, behind a margin that no text can fake.
        print("  text  " + "\n      | ".join(safe_text(line) for line in piece.text.replace("\n", "\\n\n").split("\n")))
    if chunk.num_padding:
        print(f"\npadding: {chunk.num_padding:,} end-of-document ids, never a target")


def read_chunk(directory: Path, number: int) -> Chunk:
    """Chunk `number` of the dataset in `directory`, its ids cut into the documents they are of.

    Raises: ConfigError if there is no such chunk.
    """
    index = read_index(directory)
    bounds = np.cumsum([0, *(num_chunks(tokens, index.chunk_length) for tokens in index.shard_tokens())])
    if not 0 <= number < bounds[-1]:
        wanted = f"0 to {bounds[-1] - 1:,}" if bounds[-1] else "a dataset with more text"
        raise ConfigError(f"--chunk is {number:,}; {wanted} is wanted: {safe_text(str(directory))} has {bounds[-1]:,}")
    shard = int(np.searchsorted(bounds, number, side="right")) - 1
    offset = number - int(bounds[shard])
    start = offset * index.chunk_length
    ids = open_tokens(directory, index, shard)[start : start + index.chunk_length + 1].tolist()
    num_padding = max(start + len(ids) - index.shards[shard].num_tokens, 0)
    return Chunk(number, shard, offset, num_padding, ids, _pieces(directory, index, shard, start, ids))


def _pieces(directory: Path, index: Index, shard: int, start: int, ids: list[int]) -> list[Piece]:
    offsets = open_documents(directory, index, shard)
    tokenizer = load_tokenizer(directory / TOKENIZER_NAME, index.tokenizer.end_of_document).tokenizer
    place, stop = index.shards[shard], start + len(ids)
    first = int(np.searchsorted(offsets, start, side="right")) - 1
    pieces = []
    for row in range(first, int(np.searchsorted(offsets[:-1], stop, side="left"))):
        begin, end = int(offsets[row]), int(offsets[row + 1])
        if begin == end:  # a null or empty text
            continue
        inside = range(max(begin, start), min(end, stop))
        here = ids[inside.start - start : inside.stop - start]
        text = tokenizer.decode(here, skip_special_tokens=False)
        source, number = index.sources[place.source].path, place.first_row + row
        pieces.append(Piece(source, number, inside.start - begin, inside.stop - begin, end - begin, here, text))
    return pieces


def totals(index: Index) -> dict[str, int]:
    """Sums over all shards."""
    return {name: sum(getattr(shard, name) for shard in index.shards) for name in COUNTS}


def per_source(index: Index) -> pl.DataFrame:
    """One row for each source in order, with its number of shards and the sums over them."""
    schema = {"source": pl.Int64, **dict.fromkeys(COUNTS, pl.Int64)}
    shards = pl.DataFrame([{name: getattr(shard, name) for name in schema} for shard in index.shards], schema=schema)
    sums = shards.group_by("source").agg(pl.len().cast(pl.Int64).alias("num_shards"), pl.col(COUNTS).sum())
    sources = pl.DataFrame({"source": range(len(index.sources))}, schema={"source": pl.Int64})
    return sources.join(sums, on="source", how="left").fill_null(0).sort("source").drop("source")


def _facts(directory: Path, index: Index) -> Table:
    sums, tokenizer = totals(index), index.tokenizer
    density = sums["text_bytes"] / max(index.num_tokens, 1)
    left_out = ", ".join(f"{sums[name]:,} {_spoken(name)}" for name in LEFT_OUT if sums[name] or name in LEFT_OUT[:2])
    end = f"{tokenizer.end_of_document} = {tokenizer.end_of_document_id:,}"
    rows: dict[str, Any] = {
        "dataset": directory,
        "fingerprint": index.fingerprint,
        "inputs": f"{len(index.sources):,} files, column {index.text_column!r}",
        "shards": f"{len(index.shards):,} of up to about {index.shard_bytes / 1e6:,.0f} MB of text",
        "rows": f"{sums['num_rows']:,}",
        "documents": f"{sums['num_documents']:,} ({left_out} rows left out)",
        "text": f"{sums['text_bytes'] / 1e6:,.1f} MB, {density:.2f} bytes per token",
        "tokens": f"{index.num_tokens:,}",
        "chunks": f"{sums['num_chunks']:,} of {index.chunk_length:,}",
        "padding": f"{sums['num_padding']:,} ids, never a target",
        "dtype": index.dtype,
        "tokenizer": f"{tokenizer.vocab_size:,} ids, end of document {end}, sha256 {tokenizer.sha256[:12]}",
    }
    if index.selection != Selection():
        settings = index_settings(index)
        where = f"where {settings['where']}" if index.selection.where else settings["where"]
        rows["selection"] = f"{where}; duplicates {settings['duplicates']}; {settings['split']}"
    if index.skipped:
        rows["left out"] = f"{len(index.skipped):,} input files, with {sums['num_skipped']:,} rows that were counted"
    for packing in packing_names(directory):
        rows[f"packing {packing.directory.name}"] = _packing_line(packing, index)
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(name), Text(safe_text(str(value))))
    return table


def _packing_line(name: PackingName, index: Index) -> str:
    try:
        return summary(read_packing(name, index))
    except FormatError as error:
        return f"cannot be used: {error}"


def _packing_document(name: PackingName, index: Index) -> dict[str, Any]:
    try:
        packing = read_packing(name, index)
    except FormatError as error:
        return {"method": name.method, "length": name.length, "problem": str(error)}
    return {**asdict(packing), "totals": {count: packing.total(count) for count in PACKED_COUNTS}}


def _spoken(name: str) -> str:
    """The name of a count as people say it."""
    return name.removeprefix("num_").replace("_", " ")


def _source_table(index: Index, sources: pl.DataFrame) -> Table:
    table = Table("input", title_justify="left")
    counts = ("num_tokens", "num_chunks", "num_padding")
    left_out = [name for name in LEFT_OUT if sources[name].sum()]
    shown = ("num_shards", "num_rows", "num_documents", *left_out, *counts)
    for name in shown:
        table.add_column(_spoken(name), justify="right")
    rows = [(source.path, *row) for source, row in zip(index.sources, sources.select(shown).iter_rows(), strict=True)]
    hidden = len(rows) - MAX_LINES
    for number, (path, *cells) in enumerate(rows):
        if hidden <= 0 or not MAX_LINES // 2 <= number < MAX_LINES // 2 + hidden:
            table.add_row(Text(safe_text(path)), *(f"{count:,}" for count in cells))
        elif number == MAX_LINES // 2:
            table.add_row(Text(f"... {hidden:,} more (all of them with --json)"))
    return table


def _skipped_table(index: Index) -> Table:
    table = Table("left out", "bytes", "reason", title_justify="left")
    for source in index.skipped[:MAX_LINES]:
        table.add_row(Text(safe_text(source.path)), f"{source.size_bytes:,}", Text(safe_text(source.reason)))
    if len(index.skipped) > MAX_LINES:
        table.add_row(Text(f"... {len(index.skipped) - MAX_LINES:,} more (all of them with --json)"))
    return table
