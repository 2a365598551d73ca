"""One self-contained HTML file in which no text can act: what is text is escaped, what is not made here does not run.

Text becomes `Html` by `safe_html` or as a child of `element`; any other string that reaches a page is escaped there, so
that something forgotten shows up as markup to read and not as markup that works. The page's security policy allows
nothing but the one script and the one style sheet it was made with, by their hashes, and pictures inside the page.
"""

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.terminal import safe_text

STYLES = Path(__file__).with_name("page.css")
SCRIPTED = 'document.documentElement.classList.add("scripted");\n'
ALONE = ("input", "br", "hr", "meta", "link", "col")
NOT_IN_A_BLOCK = re.compile("[<>&\u007f-\u009f\u2028\u2029\ud800-\udfff]")


class Html(str):
    """HTML that is safe to put into a page. What is made of it by `+`, `%` or an f-string is text again."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """A part of a page: its heading, and what stands below it. `anchor` is the name that links lead to."""

    anchor: str
    heading: str
    body: Html


def safe_html(text: str) -> Html:
    r"""`text` as HTML that shows it: nothing in it is markup, and what controls or turns writing is spelled out.

    It may stand between tags and in a quoted attribute. Newlines are kept.

    >>> safe_html("<b>'\u202e\x9b")
    '&lt;b&gt;&#x27;\\u202e\\x9b'
    """
    return Html(html.escape(safe_text(text, keep_newlines=True)))


def element(tag: str, *children: str, **attributes: str | int | float | bool | None) -> Html:
    """An element: children that are not Html are text. `class_` is class, `data_x` data-x; None and False are left out.

    >>> element("p", "1 < 2", element("br"), class_="quiet", hidden=True)
    '<p class="quiet" hidden>1 &lt; 2<br></p>'
    """
    named = [(name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items()]
    written = "".join(
        f" {name}" if value is True else f' {name}="{safe_html(str(value))}"'
        for name, value in named
        if value is not None and value is not False
    )
    end = "" if tag in ALONE else f"</{tag}>"
    return Html(f"<{tag}{written}>{joined(children)}{end}")


def joined(parts: Iterable[str]) -> Html:
    """The parts one after the other; those that are not Html are text."""
    return Html("".join(part if isinstance(part, Html) else safe_html(part) for part in parts))


def facts(named: dict[str, str]) -> Html:
    """Names and what each is, as a grid that is a list on a narrow screen."""
    rows = (element("div", element("dt", name), element("dd", value)) for name, value in named.items())
    return element("dl", *rows, class_="facts")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, label: str, numbers: Sequence[str] = ()) -> Html:
    """A table that scrolls inside itself, also by keyboard; the columns named in `numbers` stand on the right."""
    classes = ["number" if column in numbers else None for column in columns]
    head = element(
        "tr", *(element("th", name, scope="col", class_=c) for name, c in zip(columns, classes, strict=True))
    )
    body = joined(
        element("tr", *(element("td", cell, class_=c) for cell, c in zip(row, classes, strict=True))) for row in rows
    )
    whole = element("table", element("thead", head), element("tbody", body))
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label=label)


def data_block(data: Any) -> Html:
    """`data` as JSON in a block with the id "data" that no browser runs and no text can close.

    Its strings are made safe to show as they are; a number that is not finite is null, as JSON has none.
    """
    text = json.dumps(_shown(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = NOT_IN_A_BLOCK.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return Html(f'<script type="application/json" id="data">{text}</script>')


def page(
    title: str, lead: str, sections: Sequence[Section], *, styles: str = "", script: str = "", data: Any = None
) -> str:
    """A whole page. `styles` follow those that every page has; `script` finds `data` in the block named "data".

    Nothing is asked of any server. `styles` and `script` are the program's own: text must not be put into them.
    """
    style = _own(STYLES.read_text(encoding="utf-8") + styles)
    code = _own(SCRIPTED + script)
    policy = (
        f"default-src 'none'; script-src '{_hash(code)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = joined(
        [
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=policy),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="referrer", content="no-referrer"),
            element("link", rel="icon", href="data:,"),
            element("title", title),
            Html(f"<style>{style}</style>"),
        ]
    )
    links = (element("a", section.heading, href=f"#{section.anchor}") for section in sections)
    parts = (
        element(
            "section",
            element("h2", part.heading, id=f"{part.anchor}-heading"),
            part.body,
            id=part.anchor,
            aria_labelledby=f"{part.anchor}-heading",
        )
        for part in sections
    )
    header = element("header", element("h1", title), element("p", lead, class_="quiet"), element("nav", *links))
    body = joined([element("main", header, *parts), data_block(data), Html(f"<script>{code}</script>")])
    return f'<!doctype html>\n<html lang="en">\n{element("head", head)}\n{element("body", body)}\n</html>\n'


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return safe_text(value, keep_newlines=True)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {safe_text(str(name)): _shown(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return value


def _own(code: str) -> str:
    """A style sheet or script of ours, as it may stand in a page: the hash of what a browser sees is that of `code`."""
    assert not re.search("</(script|style)|<!--|[\r\0]", code, re.IGNORECASE)
    return code


def _hash(code: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
