"""A dataset as one self-contained page: what `inspect` prints, drawn, and chunks whose tokens can be looked at."""

from collections.abc import Sequence
from pathlib import Path

from preprocess.chunk_viewer import short_text, viewer
from preprocess.chunks import Chunk
from preprocess.inspection import LEFT_OUT, Inspection, spoken
from preprocess.report import facts, looked_at, middle
from preprocess.survey import Spread
from shared import page
from shared.page import Html, Section, element, joined, table

STYLES, SCRIPT = (Path(__file__).with_name(f"page.{kind}").read_text() for kind in ("css", "js"))
MOST_SHARDS = MOST_SOURCES = 400
MOST_UNUSED = 1000


def dataset_page(found: Inspection, chunks: Sequence[Chunk], most_ids: int, asked: int | None = None) -> str:
    """The page of a dataset, with `chunks` as far as they have `most_ids` ids together; all but `asked` were drawn."""
    sections = [
        Section("dataset", "Dataset", _dataset(found)),
        Section("documents", "Documents", _documents(found)),
        Section("tokens", "Tokens", _tokens(found)),
        Section("chunks", "Chunks", viewer(found, chunks, most_ids, asked)),
        Section("shards", "Shards", _shards(found)),
        Section("inputs", "Inputs", _sources(found)),
    ]
    title = found.directory.absolute().name
    lead = f"A token dataset of {found.index.num_tokens:,} tokens, fingerprint {found.index.fingerprint[:12]}."
    shown = {number for chunk in chunks for number in chunk.ids}
    counts = found.survey.counts
    uses = {number: int(counts[number]) for number in sorted(shown) if found.survey.num_ids and number < len(counts)}
    data = {"num_ids": found.survey.num_ids, "uses": uses}
    return page.page(title, lead, sections, styles=STYLES, script=SCRIPT, data=data)


def _dataset(found: Inspection) -> Html:
    index, totals = found.index, found.totals
    figures = {
        "tokens": f"{index.num_tokens:,}",
        "documents": f"{totals['num_documents']:,}",
        "bytes of text": f"{totals['text_bytes']:,}",
        "bytes per token": f"{found.bytes_per_token:.3f}",
        "chunk length": f"{index.chunk_length:,}",
    }
    said = {name: value for name, value in facts(found).items() if name not in ("tokens", "text")}
    wrong = [element("li", text, class_="bad") for text in found.problems]
    return joined([element("div", page.facts(figures), class_="figures"), page.facts(said), element("ul", *wrong)])


def _documents(found: Inspection) -> Html:
    counted = found.survey
    if not counted.lengths or not counted.chunks:
        return element("p", "No document could be counted: no shard that holds one can be read here.")
    total = found.totals["num_documents"]
    lengths = _histogram(counted.lengths, "tokens in a document", "Documents by length")
    chunks = _histogram(counted.chunks, "chunks with a part of a document", "Documents by the chunks they are in")
    said = f"Counted: {looked_at(counted.num_documents, total, 'documents', found.seed)}. A document's end is a token."
    return joined([element("p", said, class_="quiet"), element("div", lengths, chunks, class_="columns")])


def _histogram(spread: Spread, unit: str, title: str) -> Html:
    """Bars that double in width of what they stand for, with a table of the same numbers."""
    total, most = sum(bin_.count for bin_ in spread.bins), max(bin_.count for bin_ in spread.bins)
    width, height, bottom = 560 / len(spread.bins), 170, 195
    bars = []
    for number, bin_ in enumerate(spread.bins):
        size, left = height * bin_.count / most, number * width
        name = f"{_range(bin_.low, bin_.high)} {unit}: {bin_.count:,} documents ({bin_.count / total:.1%})"
        bars.append(
            element(
                "rect", element("title", name), x=f"{left + 1:.1f}", y=f"{bottom - size:.1f}", height=f"{size:.1f}",
                width=f"{width - 2:.1f}", class_="bar",
            )
        )  # fmt: skip
        if number % (1 + len(spread.bins) // 12) == 0:
            bars.append(element("text", _short(bin_.low), x=f"{left + 1:.1f}", y=bottom + 16))
    axis = element("line", x1=0, x2=560, y1=bottom, y2=bottom, class_="axis")
    drawn = element("svg", *bars, axis, viewBox="0 0 560 215", role="img", aria_label=title)
    rows = [(_range(bin_.low, bin_.high), f"{bin_.count:,}", f"{bin_.count / total:.2%}") for bin_ in spread.bins]
    numbers = table([unit, "documents", "share"], rows, label=title, numbers=("documents", "share", unit))
    named = {"0.01": "1%", "0.1": "10%", "0.5": "half", "0.9": "90%", "0.99": "99%"}
    shares = ", ".join(f"{named[name]} up to {value:,}" for name, value in spread.quantiles.items())
    said = f"{unit}: {spread.smallest:,} to {spread.largest:,}, mean {spread.mean:,.1f}; {shares}"
    return element(
        "figure", element("h3", title), drawn, element("figcaption", said),
        element("details", element("summary", "the numbers"), numbers),
    )  # fmt: skip


def _tokens(found: Inspection) -> Html:
    counted, total = found.survey, found.index.num_tokens
    if not counted.num_ids:
        return element("p", "No token could be counted: no shard that holds one can be read here.")
    uses, unused, texts = found.most_frequent(), found.unused(), found.texts
    rows = [
        (f"{i + 1}", _token(use.text), f"{use.id:,}", f"{use.uses:,}", f"{use.share:.2%}") for i, use in enumerate(uses)
    ]
    frequent = table(
        ["rank", "token", "id", "uses", "share"], rows, label="Most frequent", numbers=("rank", "id", "uses", "share")
    )
    names = (
        element("span", short_text(_quoted(texts.one(number))), title=f"id {number}") for number in unused[:MOST_UNUSED]
    )
    more = f" The first {MOST_UNUSED:,} of them:" if len(unused) > MOST_UNUSED else ""
    of_what = "in the dataset" if counted.has_all_ids else "in the ids counted"
    chips = element("div", *names, class_="unused code")
    problem = [element("p", found.tokenizer_problem, class_="bad")] if found.tokenizer_problem else []
    return joined(
        [
            element("p", f"Counted: {looked_at(counted.num_ids, total, 'ids', found.seed)}.", class_="quiet"),
            *problem,
            element(
                "div",
                element("div", element("h3", f"The {len(uses)} most frequent"), frequent),
                element(
                    "div",
                    element("h3", f"Never used: {len(unused):,} of {found.index.tokenizer.vocab_size:,} ids"),
                    element("p", f"Ids that are not {of_what}, special ones included.{more}", class_="quiet"),
                    element("div", chips, class_="scroll", tabindex=0, role="region", aria_label="Ids never used"),
                ),
                class_="columns",
            ),
        ]
    )


def _shards(found: Inspection) -> Html:
    columns = ["shard", "input", "row groups", "rows", "documents", "tokens", "chunks", "padding", "state"]
    paths = [source.path for source in found.index.sources]
    shown = (
        "source", "first_row_group", "num_row_groups", "first_row", "num_rows", "num_documents", "num_tokens",
        "num_chunks", "num_padding", "state",
    )  # fmt: skip
    rows = []
    for number, row in enumerate(found.shards.select(shown).iter_rows()):
        source, group, groups, first, num_rows, *counts, told = row
        spans = [
            _range(start, start + size - 1) if size else "none" for start, size in ((group, groups), (first, num_rows))
        ]
        rows.append((f"{number:05d}", short_text(paths[source]), *spans, *(f"{count:,}" for count in counts), told))
    return _cut_table(columns, rows, MOST_SHARDS, "shards", words=("input", "state"))


def _sources(found: Inspection) -> Html:
    left_out = [name for name in LEFT_OUT if found.sources[name].sum()]
    shown = ("num_shards", "num_rows", "num_documents", *left_out, "text_bytes", "num_tokens")
    counts = found.sources.select(shown).iter_rows()
    rows = [
        (short_text(source.path), f"{source.size_bytes:,}", *(f"{count:,}" for count in row))
        for source, row in zip(found.index.sources, counts, strict=True)
    ]
    whole = _cut_table(["input", "bytes", *map(spoken, shown)], rows, MOST_SOURCES, "inputs", words=("input",))
    if not found.index.skipped:
        return whole
    skipped = [(short_text(s.path), f"{s.size_bytes:,}", short_text(s.reason)) for s in found.index.skipped]
    cut = _cut_table(["left out", "bytes", "reason"], skipped, MOST_SOURCES, "left out", words=("left out", "reason"))
    return joined([whole, element("h3", "Left out"), cut])


def _cut_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], most: int, label: str, words: Sequence[str]
) -> Html:
    """A table of which the middle is left out if it is long, which is said above it."""
    shown: list[Sequence[str]] = []
    for row in middle(rows, most):
        shown.append([f"... {row:,} more ...", *[""] * (len(columns) - 1)] if isinstance(row, int) else row)
    whole = table(columns, shown, label=label, numbers=[name for name in columns if name not in words])
    if len(rows) <= most:
        return whole
    said = f"Shown: the first and last {most // 2:,} of {len(rows):,}. inspect --json has all."
    return joined([element("p", said, class_="quiet"), whole])


def _token(text: str) -> Html:
    return element("span", _quoted(short_text(text)), class_="code")


def _quoted(text: str) -> str:
    return f"\u201c{text}\u201d".replace("\n", "\\n")


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _short(number: int) -> str:
    """A power of two as it is written under a bar.

    >>> _short(512), _short(4096), _short(2 << 20)
    ('512', '4k', '2M')
    """
    for size, letter in ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "k")):
        if number >= size:
            return f"{number // size}{letter}"
    return str(number)
