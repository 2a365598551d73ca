"""Which words of a command line name a place elsewhere."""

import re
from pathlib import Path

from shared.terminal import safe_text


def remote_url(word: str | Path) -> str | None:
    """The URL that a word is, also after a Path made of it has lost a slash; None if it is a path of this machine.

    >>> remote_url("s3://bucket/text"), remote_url(Path("s3://bucket/text")), remote_url("../data/text")
    ('s3://bucket/text', 's3://bucket/text', None)
    """
    found = re.search(r"(?:^|/)([a-z][a-z0-9]+):/+(.*)$", str(word))
    if found is None:
        return None
    scheme, path = found.groups()
    return f"{scheme}://{'/' * (scheme == 'file')}{path}"


def not_here(url: str) -> str:
    """What to tell who wants to compute on a place elsewhere."""
    return f"{safe_text(url)} is not on this machine: `python -m preprocess fetch {safe_text(url)} DIR` brings it"
