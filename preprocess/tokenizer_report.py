"""A tokenizer on a sample of text, as tables and as JSON: bytes per token, unused ids, notable entries."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from preprocess.choose import Engines
from preprocess.sampling import Sample
from preprocess.tokenizer import LoadedTokenizer, load_tokenizer
from preprocess.vocabulary import LANGUAGE, Entry, Measured, entries, largest_languages, measure, unused
from shared.terminal import safe_text

MOST_LANGUAGES, MOST_ENTRIES, MOST_EXAMPLES, MOST_CHARACTERS = 20, 10, 8, 60


def report(path: Path, end_of_document: str | None, sample: Sample, *, as_json: bool) -> None:
    """Print what the tokenizer.json at `path` makes of the sample.

    Raises: InputError if one of them cannot be read.
    """
    tokenizer = load_tokenizer(path, end_of_document)
    engines = Engines(tokenizer, say=_silent if as_json else print)
    measured = measure(tokenizer, sample.labelled(LANGUAGE), engines)
    vocabulary = entries(tokenizer, measured.counts)
    if as_json:
        print(json.dumps(document(tokenizer, measured, vocabulary)))
        return
    console = Console(width=None if Console().is_terminal else 160, highlight=False)
    console.print(_facts(path, tokenizer, measured, vocabulary))
    if list(measured.languages) != [None]:
        console.print(_language_table(measured))
    console.print(_entry_table("longest entries", longest(vocabulary), measured.total.num_tokens))
    console.print(_entry_table("most frequent entries", most_frequent(vocabulary), measured.total.num_tokens))


def summarize(path: Path, end_of_document: str, sample: Sample) -> str:
    """The tokenizer at `path` on the sample in one line.

    Raises: InputError if one of them cannot be read.
    """
    tokenizer = load_tokenizer(path, end_of_document)
    measured = measure(tokenizer, sample.labelled(None), Engines(tokenizer))
    total, vocabulary = measured.total, entries(tokenizer, measured.counts)
    return (
        f"{safe_text(str(path))}: {len(vocabulary):,} entries, {total.bytes_per_token:.2f} bytes per token on "
        f"{total.text_bytes / 1e6:,.1f} MB of the text, {len(unused(vocabulary)):,} ids unused there"
    )


def document(tokenizer: LoadedTokenizer, measured: Measured, vocabulary: Sequence[Entry]) -> dict[str, Any]:
    """All of the report as JSON: every language, and every unused id."""
    never, total = unused(vocabulary), measured.total
    return {
        "tokenizer": {
            "sha256": tokenizer.identity.sha256,
            "num_entries": len(vocabulary),
            "special_tokens": [entry.name for entry in vocabulary if entry.spelled is None],
        },
        "sample": {**asdict(total), "bytes_per_token": total.bytes_per_token},
        "languages": [
            {
                "language": name,
                **asdict(usage),
                "share": usage.text_bytes / total.text_bytes,
                "bytes_per_token": usage.bytes_per_token,
            }
            for name, usage in largest_languages(measured, len(measured.languages))
        ],
        "unused": {
            "num_ids": len(never),
            "share": len(never) / len(vocabulary),
            "ids": [entry.id for entry in never],
        },
        "longest": [_described(entry) for entry in longest(vocabulary)],
        "most_frequent": [_described(entry) for entry in most_frequent(vocabulary)],
    }


def longest(vocabulary: Sequence[Entry]) -> list[Entry]:
    """The entries of most bytes, special tokens left out."""
    return sorted(vocabulary, key=lambda entry: (-entry.size_bytes, entry.id))[:MOST_ENTRIES]


def most_frequent(vocabulary: Sequence[Entry]) -> list[Entry]:
    """The entries that the sample has most often."""
    return sorted(vocabulary, key=lambda entry: (-entry.uses, entry.id))[:MOST_ENTRIES]


def shown(entry: Entry) -> str:
    """The entry in quotes, safe to show and not too long."""
    text = entry.text
    cut = f" ... ({len(text):,} characters)" if len(text) > MOST_CHARACTERS else ""
    return safe_text(json.dumps(text[:MOST_CHARACTERS], ensure_ascii=False)) + cut


def _described(entry: Entry) -> dict[str, Any]:
    return {"id": entry.id, "text": entry.text, "size_bytes": entry.size_bytes, "uses": entry.uses}


def _facts(path: Path, tokenizer: LoadedTokenizer, measured: Measured, vocabulary: Sequence[Entry]) -> Table:
    never, total = unused(vocabulary), measured.total
    specials = [entry.name for entry in vocabulary if entry.spelled is None]
    single = sum(entry.size_bytes == 1 for entry in never)
    examples = ", ".join(shown(entry) for entry in never[:: max(len(never) // MOST_EXAMPLES, 1)][:MOST_EXAMPLES])
    share = len(never) / len(vocabulary)
    listed = ", ".join(specials[:MOST_EXAMPLES]) + (", ..." if len(specials) > MOST_EXAMPLES else "")
    facts = {
        "tokenizer": f"{path}, sha256 {tokenizer.identity.sha256[:12]}",
        "entries": f"{len(vocabulary):,}, {len(specials):,} of them special tokens, which no text gives: {listed}",
        "sample": f"{total.num_documents:,} documents, {total.text_bytes / 1e6:,.1f} MB of text",
        "tokens": f"{total.num_tokens:,}, {total.bytes_per_token:.2f} bytes per token",
        "never used": f"{len(never):,} ids ({share:.1%}), {single:,} of them single bytes",
        "such as": examples or "none",
    }
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name), Text(safe_text(value)))
    return table


def _language_table(measured: Measured) -> Table:
    table = Table("language", title_justify="left")
    for name in ("documents", "MB of text", "share", "tokens", "bytes per token"):
        table.add_column(name, justify="right")
    for language, usage in largest_languages(measured, MOST_LANGUAGES):
        table.add_row(
            Text("(not told)" if language is None else safe_text(language)),
            f"{usage.num_documents:,}",
            f"{usage.text_bytes / 1e6:,.2f}",
            f"{usage.text_bytes / measured.total.text_bytes:.1%}",
            f"{usage.num_tokens:,}",
            f"{usage.bytes_per_token:.2f}",
        )
    return table


def _entry_table(title: str, rows: Sequence[Entry], num_tokens: int) -> Table:
    table = Table(title, title_justify="left")
    for name in ("id", "bytes", "uses", "of tokens"):
        table.add_column(name, justify="right")
    for entry in rows:
        share = entry.uses / max(num_tokens, 1)
        table.add_row(Text(shown(entry)), f"{entry.id:,}", f"{entry.size_bytes:,}", f"{entry.uses:,}", f"{share:.2%}")
    return table


def _silent(_: str) -> None:
    """Say nothing: only JSON is wanted."""
