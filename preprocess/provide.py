"""The tokenizer of a build: the one that was given, the one that is already there, or one trained now."""

import time
from collections.abc import Sequence
from pathlib import Path

from preprocess.config import DEFAULT_VOCAB_SIZE, BuildSettings, TokenizerSettings
from preprocess.sources import Footer
from preprocess.tokenizer import LoadedTokenizer, load_tokenizer, make_tokenizer, train_tokenizer
from shared.errors import ConfigError
from shared.format import TOKENIZER_NAME
from shared.storage import sha256_file, write_file
from shared.terminal import safe_text


def given_tokenizer(settings: TokenizerSettings) -> LoadedTokenizer | None:
    """The tokenizer that the settings name, if they name one."""
    return None if settings.path is None else load_tokenizer(Path(settings.path), settings.end_of_document)


def own_tokenizer(
    directory: Path,
    root: Path,
    footers: Sequence[Footer],
    build_settings: BuildSettings,
    settings: TokenizerSettings,
    *,
    may_train: bool,
) -> LoadedTokenizer:
    """The tokenizer that an earlier run left in `directory`, else one trained now.

    Raises: ConfigError if there is none and none may be trained, or it is larger than wanted.
    """
    path = directory / TOKENIZER_NAME
    if not path.exists():
        if not may_train:
            raise ConfigError(
                f"{safe_text(str(directory))} has no tokenizer yet, and a part of a build never trains one: give "
                "--tokenizer FILE, which `python -m preprocess tokenizer DATA FILE` makes"
            )
        raw = train(root, footers, build_settings, settings)
        return make_tokenizer(raw, TOKENIZER_NAME, settings.end_of_document)
    found, wanted = load_tokenizer(path, settings.end_of_document), settings.vocab_size
    size = found.identity.vocab_size
    print(f"using the tokenizer that is already there: {safe_text(str(path))} (vocabulary {size:,})", flush=True)
    if wanted is not None and size > wanted:
        raise ConfigError(
            f"{safe_text(str(directory))} was built otherwise: vocabulary: found {size:,}, wanted {wanted:,}: "
            "leave --vocab-size out, or name another directory"
        )
    return found


def train(root: Path, footers: Sequence[Footer], build_settings: BuildSettings, settings: TokenizerSettings) -> bytes:
    """The contents of a tokenizer.json trained on the input; prints what it does."""
    wanted = settings.vocab_size or DEFAULT_VOCAB_SIZE
    size_mb = min(settings.sample_bytes, sum(footer.text_bytes for footer in footers)) / 1e6
    print(f"no tokenizer given: training one with {wanted:,} entries on {size_mb:,.1f} MB of the text", flush=True)
    started_s = time.monotonic()
    column, skip_bad = build_settings.text_column, build_settings.on_bad_file == "skip"
    raw, size = train_tokenizer(root, footers, column, wanted, settings.sample_bytes, skip_bad=skip_bad)
    print(f"trained a tokenizer with {size:,} entries in {time.monotonic() - started_s:,.1f} s", flush=True)
    if size < wanted:
        print(f"the text is too little for {wanted:,} entries: {size:,} is all that repeats in it", flush=True)
    return raw


def keep_tokenizer(directory: Path, tokenizer: LoadedTokenizer) -> None:
    """Put the tokenizer into the dataset's directory unless it is there."""
    path = directory / TOKENIZER_NAME
    if not path.exists() or sha256_file(path) != tokenizer.identity.sha256:
        write_file(path, [tokenizer.raw])
