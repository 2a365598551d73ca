"""Whether the tokenizer beside a dataset is the one that made it, and still gives the ids it gave."""

import hashlib
import importlib.util
from importlib.metadata import version
from pathlib import Path

from shared.directories import exists
from shared.errors import FormatError
from shared.files import read_bytes
from shared.format import TOKENIZER_NAME, Index
from shared.terminal import safe_text


def check_tokenizer(tokens: Path, index: Index) -> None:
    """Raises: FormatError if the tokenizer in `tokens` is another one, or this machine's library reads it differently.

    The second is looked at where `tokenizers` is installed: a text and its ids for every golden vector of the index.
    """
    path = tokens / TOKENIZER_NAME
    raw = read_bytes(path) if exists(path) else None
    found = "absent" if raw is None else hashlib.sha256(raw).hexdigest()
    if raw is None or found != index.tokenizer.sha256:
        raise FormatError(
            f"{path} is {found[:12]}, the dataset was made with {index.tokenizer.sha256[:12]}: put that file back"
        )
    if importlib.util.find_spec("tokenizers") is None or not index.tokenizer.golden:
        return
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(raw.decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    for vector in index.tokenizer.golden:
        ids = tokenizer.encode(vector.text, add_special_tokens=False).ids
        if ids != vector.ids:
            raise FormatError(
                f"tokenizers {version('tokenizers')} encodes {safe_text(vector.text[:40])!r} by {path} as {ids[:12]}, "
                f"the dataset has {vector.ids[:12]}: install the release of tokenizers that made the dataset"
            )
