"""Chunks on a page: their documents, each with where it comes from, and every token with its id."""

from collections.abc import Iterable, Sequence

from preprocess.chunks import Chunk, Piece
from preprocess.inspection import Inspection
from preprocess.report import origin
from preprocess.token_texts import TokenText, TokenTexts
from shared.page import Html, element, joined
from shared.terminal import counted

MOST_TEXT = 300  # characters of one name, url or token


def viewer(found: Inspection, chunks: Sequence[Chunk], most_ids: int, asked: int | None) -> Html:
    """Chunks, `asked` and drawn ones, to be read token by token and searched, as far as they have `most_ids` ids."""
    if not chunks:
        return element("p", "No chunk can be read here.")
    how = f"drawn with seed {found.seed}" if asked is None else f"{asked:,} and others drawn with seed {found.seed}"
    said = (
        f"{len(chunks):,} of {found.totals['num_chunks']:,} chunks, {how}. Point at a token, or "
        "go to a text with Tab and through its tokens with the arrow keys, to see its id."
    )
    search = element(
        "div",
        element("label", "Search these chunks", for_="query"),
        element("input", id="query", type="search", placeholder="text, or #id", autocomplete="off", spellcheck="false"),
        element("button", "Previous", id="previous", type="button"),
        element("button", "Next", id="next", type="button"),
        element("span", id="matches", role="status", class_="quiet"),
        class_="search needs-script",
    )
    left, texts, parts = most_ids, found.texts, []
    for number, chunk in enumerate(chunks):
        parts.append(_chunk(chunk, texts, left, is_open=number == 0))
        left = max(left - len(chunk.ids), 0)
    return joined(
        [element("p", said, class_="quiet"), search, *parts, element("output", id="readout", aria_live="polite")]
    )


def _chunk(chunk: Chunk, texts: TokenTexts, most_ids: int, *, is_open: bool) -> Html:
    place = f" offset {chunk.offset:,} of shard {chunk.shard:,}, {counted(len(chunk.documents), 'document')}"
    parts, left, spelled = [], most_ids, texts.of(chunk.ids)
    for piece in chunk.documents:
        here, spelled = spelled[: len(piece.ids)], spelled[len(piece.ids) :]
        parts += [_place(piece), _text(piece, here[:left], piece.ids[:left])]
        left = max(left - len(piece.ids), 0)
    if len(chunk.ids) > most_ids:
        parts.append(element("p", f"Shown: {most_ids:,} of its {len(chunk.ids):,} ids.", class_="quiet"))
    if chunk.num_padding:
        parts.append(element("p", f"Then padding: {counted(chunk.num_padding, 'id')}, never a target.", class_="quiet"))
    heading = element("summary", f"Chunk {chunk.number:,}", element("small", place, class_="quiet"))
    return element("details", heading, *parts, open=is_open, id=f"chunk-{chunk.number}")


def _place(piece: Piece) -> Html:
    whole = "whole" if piece.stop - piece.start == piece.num_tokens else "part"
    span = f" \u00b7 tokens {piece.start:,} to {piece.stop:,} of {piece.num_tokens:,} ({whole})"
    where = element("span", short_text(origin(piece)), class_="quiet")
    name = element("strong", short_text(piece.source))
    return element("p", name, f" row {piece.row:,}", span, element("br"), where, class_="place")


def _text(piece: Piece, spelled: Iterable[TokenText], ids: Iterable[int]) -> Html:
    """A text as its tokens, each with its id; what a browser shows is the text."""
    tokens = []
    for token, number in zip(spelled, ids, strict=True):
        kind = "end" if token.is_special else "part" if token.is_part else "line" if "\n" in token.text else None
        tokens.append(element("i", short_text(token.text), title=number, class_=kind))
    label = f"Tokens of {short_text(piece.source)} row {piece.row}"
    return element("p", *tokens, class_="tokens", tabindex=0, role="group", aria_label=label, data_start=piece.start)


def short_text(text: str) -> str:
    """`text`, cut if it is very long, which is said."""
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}... ({len(text):,} characters)"
