"""The tokenizer of a build: the one that was given, the one that is already there, or one trained now."""

import time
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from preprocess import trainer
from preprocess.config import BuildSettings, TokenizerSettings, TrainerSettings
from preprocess.discover import Inputs
from preprocess.sampling import Sample
from preprocess.tokenizer import LoadedTokenizer, load_tokenizer, make_tokenizer
from shared.directories import exists
from shared.errors import ConfigError
from shared.format import TOKENIZER_NAME
from shared.storage import sha256_file, write_file
from shared.terminal import safe_text


def given_tokenizer(settings: TokenizerSettings) -> LoadedTokenizer | None:
    """The tokenizer that the settings name, if they name one."""
    return None if settings.path is None else load_tokenizer(Path(settings.path), settings.end_of_document)


def own_tokenizer(
    directory: Path,
    inputs: Inputs,
    build_settings: BuildSettings,
    settings: TokenizerSettings,
    *,
    may_train: bool,
) -> LoadedTokenizer:
    """The tokenizer that an earlier run left in `directory`, else one trained now.

    Raises: ConfigError if there is none and none may be trained, or it is larger than wanted.
    """
    path = directory / TOKENIZER_NAME
    if not exists(path):
        if not may_train:
            raise ConfigError(
                f"{safe_text(str(directory))} has no tokenizer yet, and a part of a build never trains one: give "
                "--tokenizer FILE, which `python -m preprocess tokenizer DATA FILE` makes"
            )
        wanted = settings.trainer()
        column, skip_bad = build_settings.text_column, build_settings.on_bad_file == "skip"
        sample = Sample(inputs.root, inputs.footers, column, settings.sample_bytes, skip_bad, build_settings.selection)
        raw = train(sample, wanted)
        return make_tokenizer(raw, TOKENIZER_NAME, wanted.special_tokens[0])
    found = load_tokenizer(path, settings.end_of_document)
    size = found.identity.vocab_size
    print(f"using the tokenizer that is already there: {safe_text(str(path))} (vocabulary {size:,})", flush=True)
    for option, different in _differences(found, settings):
        name = safe_text(str(directory))
        raise ConfigError(f"{name} was built otherwise: {different}: leave {option} out, or name another directory")
    return found


def _differences(found: LoadedTokenizer, wanted: TokenizerSettings) -> Iterator[tuple[str, str]]:
    """Options that the tokenizer that is there does not meet, and what differs."""
    size = found.identity.vocab_size
    if wanted.vocab_size is not None and size > wanted.vocab_size:
        yield "--vocab-size", f"vocabulary: found {size:,}, wanted {wanted.vocab_size:,}"
    specials = {token.content for token in found.tokenizer.get_added_tokens_decoder().values() if token.special}
    for missing in [token for token in wanted.special_tokens if token not in specials]:
        yield "--special-tokens", f"special tokens: {safe_text(missing)} is wanted and not there"
    if wanted.pre_tokenizer is not None and not trainer.is_cut_by(found.raw, wanted.pre_tokenizer):
        yield "--pre-tokenizer", f"pre-tokenizer: {wanted.pre_tokenizer} is wanted and another is there"


def train(sample: Sample, settings: TrainerSettings) -> bytes:
    """The contents of a tokenizer.json trained on the sample; prints what it does."""
    wanted, size_mb = settings.vocab_size, sample.expected_bytes / 1e6
    print(f"training a tokenizer with {wanted:,} entries on {size_mb:,.1f} MB of the text", flush=True)
    started_s = time.monotonic()
    raw = trainer.train(sample, settings, say=lambda line: print(line, flush=True))
    size = Tokenizer.from_str(raw.decode()).get_vocab_size()
    print(f"trained a tokenizer with {size:,} entries in {time.monotonic() - started_s:,.1f} s", flush=True)
    if size < wanted:
        print(f"the text is too little for {wanted:,} entries: {size:,} is all that repeats in it", flush=True)
    return raw


def keep_tokenizer(directory: Path, tokenizer: LoadedTokenizer) -> None:
    """Put the tokenizer into the dataset's directory unless it is there."""
    path = directory / TOKENIZER_NAME
    if not exists(path) or sha256_file(path) != tokenizer.identity.sha256:
        write_file(path, [tokenizer.raw])
