"""Byte-level BPE, learned from text: the same tokenizer.json from either of two trainers.

Ids are laid out as `tokenizers` does it: the special tokens in the order given, so that the end of a document is id 0,
then the 256 bytes by their letters, then the merges in the order in which they were learned. `tokenizers` defines what
is right; gigabpe learns the same merges several times as fast, but cuts text in GPT-2's way only.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from preprocess import fast_trainer
from preprocess.config import TrainerSettings
from preprocess.encode import EngineError
from preprocess.engines import byte_letters
from preprocess.fast_trainer import Merges
from preprocess.remember import remembered
from shared.errors import ConfigError
from shared.terminal import safe_text

MIN_FREQUENCY = 2  # a pair seen once is no pattern
PROBE = 1  # raise it when what is probed changes: older answers are then not read
# Source: the regex of Llama 3, spelled as in its tokenizer.json: the fast engines know it by this string.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def train(texts: Iterable[Any], settings: TrainerSettings, say: Callable[[str], None] = print) -> bytes:
    """The contents of a tokenizer.json trained on `texts`, large_string arrays without nulls that are read repeatedly.

    The same texts give the same bytes, whichever trainer is there; `say` is told which one trains, and why.

    Raises: ConfigError if a special token could be learned from text.
    """
    refuse_learnable(settings)
    try:
        merges = _learn_fast(texts, settings, say)
    except EngineError as error:
        say(f"training with tokenizers {tokenizers.__version__}, which is slower: {error}")
        return train_reference(texts, settings)
    return tokenizer_file(merges, settings)


def train_reference(texts: Iterable[Any], settings: TrainerSettings) -> bytes:
    """As `train`, by `tokenizers`."""
    tokenizer = _byte_level(models.BPE(), settings.pre_tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=list(settings.special_tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((batch.to_pylist() for batch in texts), trainer)
    return tokenizer.to_str(pretty=False).encode()


def tokenizer_file(merges: Merges, settings: TrainerSettings) -> bytes:
    """The tokenizer.json with as many of these merges, in order, as there is room for."""
    entries = dict.fromkeys([*settings.special_tokens, *sorted(byte_letters())])
    kept = []
    for one, two in merges:
        if len(entries) == settings.vocab_size:
            break
        entries[one + two] = None  # which may be there: two merges can make the same entry
        kept.append((one, two))
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = _byte_level(models.BPE(vocabulary, kept), settings.pre_tokenizer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in settings.special_tokens]
    )
    return tokenizer.to_str(pretty=False).encode()


def refuse_learnable(settings: TrainerSettings) -> None:
    """Raise ConfigError for a special token that text could be given as: one that may also come of merges.

    Merges stay inside a piece and are written in the letters of bytes, so a token that is cut into several pieces, or
    has another character, never comes of them.
    """
    cut = _byte_level(models.BPE(), settings.pre_tokenizer).pre_tokenizer
    for token in settings.special_tokens:
        is_cut = token.isascii() and len(cut.pre_tokenize_str(token)) > 1
        if set(token) <= set(byte_letters()) and not is_cut:
            shown = safe_text(repr(token))
            raise ConfigError(f"special token {shown} could be learned from text too: name it like <|name|>")


def is_cut_by(raw: bytes, pre_tokenizer: str) -> bool:
    """Whether the tokenizer.json `raw` cuts text as the one of `train_reference` with this pre-tokenizer does."""
    own = json.loads(_byte_level(models.BPE(), pre_tokenizer).to_str())
    return all(json.loads(raw).get(part) == own[part] for part in ("normalizer", "pre_tokenizer"))


def _learn_fast(texts: Iterable[Any], settings: TrainerSettings, say: Callable[[str], None]) -> Merges:
    """Merges for all of the vocabulary by gigabpe.

    Raises: EngineError if it is not there, or the merges would be others than those of `tokenizers`.
    """
    if settings.pre_tokenizer != "gpt2":
        raise EngineError(f"{fast_trainer.NAME} cuts text as gpt2 does, not as {settings.pre_tokenizer} does")
    label = fast_trainer.label()
    question = {"probe": PROBE, "trainer": label, "tokenizers": tokenizers.__version__}

    def find() -> dict[str, Any]:
        say(f"comparing {label} with tokenizers {tokenizers.__version__} (once)")
        return {"equal": learns_alike([pa.array(fast_trainer.probe_texts(), pa.large_string())])}

    if not remembered("trainer", question, find, say)["equal"]:
        raise EngineError(f"{label} learns other merges from some code points or odd texts")
    say(f"training with {label}, checked against tokenizers {tokenizers.__version__}")
    return fast_trainer.learn(texts, settings.vocab_size, MIN_FREQUENCY)


def learns_alike(texts: Iterable[Any]) -> bool:
    """Whether both trainers learn the same of `texts`, down to the last pair that is there twice.

    Raises: EngineError if the fast one cannot learn.
    """
    everything = TrainerSettings(vocab_size=1 << 20)
    merges = fast_trainer.learn(texts, everything.vocab_size, MIN_FREQUENCY)
    return tokenizer_file(merges, everything) == train_reference(texts, everything)


def _byte_level(model: models.BPE, pre_tokenizer: str) -> Tokenizer:
    tokenizer, to_bytes = Tokenizer(model), pre_tokenizers.ByteLevel
    if pre_tokenizer == "llama3":
        split = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes(add_prefix_space=False, use_regex=False)])
    else:
        tokenizer.pre_tokenizer = to_bytes(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
