"""Pages opened from disk in a real Chromium, with a record of all that a page must not do."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass
class Visit:
    """A page that is open, and what it did: `errors` in the console, `requests` but that for itself, `dialogs`."""

    page: "Page"
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    @property
    def misdeeds(self) -> list[str]:
        """All that a page must not do."""
        return [*self.errors, *self.requests, *self.dialogs]

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """The page as a PNG file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=path, full_page=whole)


@contextmanager
def chromium() -> Iterator["Browser"]:
    """A browser, for many pages; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--disable-gpu", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: "Browser", path: Path, *, javascript: bool = True, dark: bool = False, width: int = 1280, height: int = 900
) -> Iterator[Visit]:
    """The file at `path`, open and loaded in a window of its own."""
    scheme = "dark" if dark else "light"
    size = {"width": width, "height": height}
    context = browser.new_context(java_script_enabled=javascript, color_scheme=scheme, viewport=size)
    try:
        visit = Visit(context.new_page())
        address = path.resolve().as_uri()
        page = visit.page
        page.on("console", lambda said: visit.errors.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: visit.errors.append(str(error)))
        context.on("request", lambda request: None if request.url == address else visit.requests.append(request.url))
        context.on("page", lambda other: visit.requests.append(f"a window: {other.url}"))

        def dismiss(dialog) -> None:
            visit.dialogs.append(dialog.message)
            dialog.dismiss()

        page.on("dialog", dismiss)
        page.goto(address, wait_until="load")
        page.wait_for_timeout(50)  # what a page begins on its own begins at once
        yield visit
    finally:
        context.close()
