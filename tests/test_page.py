import json
import re
import sys
import unicodedata

import pytest

from shared.page import Html, Section, data_block, element, facts, joined, page, table
from shared.terminal import safe_text
from tests.browser import chromium, opened
from tests.payloads import PAYLOADS

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


def test_no_character_that_controls_or_turns_writing_is_shown_as_it_is():
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        control = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") or char in BIDI
        shown = safe_text(char)
        assert shown.startswith("\\") and shown.isascii() if control else shown.encode(), hex(code)
    assert safe_text(BIDI) == "".join(f"\\u{ord(char):04x}" for char in BIDI)
    assert safe_text("a\nb\t", keep_newlines=True) == "a\nb\\t"


def test_text_is_escaped_where_it_is_not_known_to_be_html():
    assert (
        element("p", "<b>", element("i", "&"), title='"\u202e') == '<p title="&quot;\\u202e">&lt;b&gt;<i>&amp;</i></p>'
    )
    assert element("p", f"{element('b', 'x')}") == "<p>&lt;b&gt;x&lt;/b&gt;</p>"  # an f-string is text again
    assert element("p", element("b", "x") + "<i>") == "<p>&lt;b&gt;x&lt;/b&gt;&lt;i&gt;</p>"
    assert joined(["<", Html("<br>")]) == "&lt;<br>"


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_can_close_the_block_of_data(payload):
    block = data_block({"text": payload, payload: [payload, float("nan")]})
    inside = re.fullmatch(r'<script type="application/json" id="data">(.*)</script>', block, re.DOTALL)[1]
    assert not re.search("[<>&\u2028\u2029\x00-\x1f\x7f-\x9f]", inside)
    assert json.loads(inside.encode()) == {
        "text": safe_text(payload, keep_newlines=True),
        safe_text(payload): [safe_text(payload, keep_newlines=True), None],
    }


def test_fifty_payloads_cause_no_dialog_no_request_and_no_error(browser, tmp_path):
    assert len(PAYLOADS) >= 50
    body = joined(
        [
            table(
                ["payload", *PAYLOADS[:9]], [(text,) * 10 for text in PAYLOADS], label=PAYLOADS[14], numbers=["payload"]
            ),
            facts(dict(zip(PAYLOADS, reversed(PAYLOADS), strict=True))),
            *(element("p", text, title=text, data_text=text, id=text, href=text) for text in PAYLOADS),
        ]
    )
    sections = [Section("payloads", PAYLOADS[0], body), Section(PAYLOADS[13], PAYLOADS[15], Html("x"))]
    script = """
    const data = JSON.parse(document.getElementById("data").textContent);
    for (const text of data) { const p = document.createElement("p"); p.textContent = text; document.body.append(p); }
    """
    path = tmp_path / "page.html"
    path.write_text(page("".join(PAYLOADS), PAYLOADS[1], sections, script=script, data=PAYLOADS), encoding="utf-8")
    for javascript in (True, False):
        with opened(browser, path, javascript=javascript) as visit:
            assert visit.misdeeds == []
            assert visit.page.title().startswith("<script>alert(1)</script>")
            assert visit.page.locator("td").all_inner_texts()[0] == PAYLOADS[0]
            assert visit.page.locator("script").count() == 2
            assert visit.page.locator("body > p").count() == (len(PAYLOADS) if javascript else 0)
            for mouse in visit.page.locator("p[title]").all()[:60:6]:
                mouse.hover()
            for _ in range(20):
                visit.page.keyboard.press("Tab")
            assert visit.misdeeds == []


def test_the_policy_stops_what_the_page_did_not_bring(browser, tmp_path):
    forgotten = "".join(
        text for text in PAYLOADS if text.startswith(("<script>alert", "<img", "<link", "<style>", "<svg on"))
    )
    path = tmp_path / "page.html"
    whole = page("title", "", [Section("a", "A", Html(forgotten))])
    path.write_text(whole, encoding="utf-8", errors="replace")
    with opened(browser, path) as visit:
        assert visit.dialogs == []
        assert all("Content Security Policy" in error for error in visit.errors)
        for address in visit.requests:  # tried, and not let out
            assert any(f"'{address}'" in error and "has been blocked" in error for error in visit.errors), address
    path.write_text(re.sub("<meta http-equiv.*?>", "", whole), encoding="utf-8", errors="replace")
    with opened(browser, path) as visit:  # the record would have seen them
        assert visit.dialogs
        assert visit.requests


@pytest.mark.parametrize("code", ["</script>", "</STYLE>", "<!--", "a\r\n"])
def test_own_code_that_a_browser_would_read_otherwise_is_refused(code):
    with pytest.raises(AssertionError):
        page("title", "", [], script=code)
