"""Which engine encodes: the fastest that is installed, fits the tokenizer and agrees with the reference engine."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from preprocess.check import Candidate, ShardCheck
from preprocess.codepoints import CodePoints
from preprocess.config import EngineSettings
from preprocess.encode import Engine, EngineError, ReferenceEngine, limit_threads
from preprocess.engines import Document, FastokensEngine, GigatokenEngine, ordinary
from preprocess.parity import OddTexts, unlike_code_points
from preprocess.spelling import byte_lengths
from preprocess.tokenizer import LoadedTokenizer


class EngineKind(Protocol):
    """A class of fast engines: its name, what it refuses, and how one is made."""

    name: str

    def __call__(self, document: Document, num_threads: int | None = None) -> Engine:
        """An engine for the tokenizer.json `document`; EngineError if it cannot be made."""
        ...

    def refusal(self, document: Document) -> str | None:
        """Why it is not to be used with `document`, if it is not."""
        ...


KINDS: tuple[Any, ...] = (GigatokenEngine, FastokensEngine)  # fastest first


class Engines:
    """The engines of a build in the order in which they are tried, the reference last.

    Each is loaded and checked when it is first needed; `say` is told in one line which is used and which is not.
    """

    def __init__(
        self,
        tokenizer: LoadedTokenizer,
        settings: EngineSettings | None = None,
        kinds: Sequence[EngineKind] = KINDS,
        say: Callable[[str], None] = print,
    ) -> None:
        self.reference: Engine = ReferenceEngine(tokenizer.tokenizer)
        self.settings = settings or EngineSettings()
        document = json.loads(tokenizer.raw)
        self._document = ordinary(document)
        added = tokenizer.tokenizer.get_added_tokens_decoder().values()
        self._odd_texts = OddTexts(self.reference, [token.content for token in added if token.special])
        self._byte_lengths = byte_lengths(document, self._odd_texts.texts, self._odd_texts.encoded)
        names = [kind.name for kind in kinds]
        first = names.index(self.settings.engine) if self.settings.engine in names else 0
        self._waiting = [] if self.settings.engine == self.reference.name else list(kinds[first:])
        self._candidates: list[Candidate] = []
        self._say = say
        if self.settings.num_threads is not None:
            limit_threads(self.settings.num_threads)

    def candidates(self) -> Iterator[Candidate]:
        """The engines that passed their checks, in order; the reference is the last."""
        number = 0
        while number < len(self._candidates) or self._load_next():
            yield self._candidates[number]
            number += 1
        yield Candidate(self.reference, CodePoints([]))

    def announce(self) -> None:
        """Load the engine that comes first and say which it is."""
        first = next(self.candidates())
        against = f", checked against tokenizers {self.reference.version}"
        self._say(f"encoding with {first.label}{'' if first.engine is self.reference else against}")

    def checks(self, first_row: int, num_rows: int) -> Iterator[ShardCheck]:
        """For each engine in turn, one shard's way through it; with `verify` full, the next engine encodes it too."""
        for candidate in self.candidates():
            yield ShardCheck(
                candidate, self.reference, self._second(candidate), self._byte_lengths, first_row, num_rows
            )

    def _second(self, first: Candidate) -> Candidate | None:
        """The engine that encodes everything once more, if one is to."""
        if not self.settings.verifies_all or first.engine is self.reference:
            return None
        candidates = self.candidates()
        next(candidate for candidate in candidates if candidate.engine is first.engine)
        return next(candidates)

    def _load_next(self) -> bool:
        """Whether another fast engine could be loaded."""
        while self._waiting:
            kind = self._waiting.pop(0)
            try:
                self._candidates.append(self._checked(kind))
                return True
            except EngineError as error:
                self._say(f"{kind.name} is not used: {error}")
        return False

    def _checked(self, kind: EngineKind) -> Candidate:
        def load(document: Document) -> Engine:
            return kind(document, self.settings.num_threads)

        if reason := kind.refusal(self._document):
            raise EngineError(f"the tokenizer does not fit: {reason}")
        engine = load(self._document)
        self._odd_texts.check(engine)
        return Candidate(engine, unlike_code_points(engine, load, self._document, self._say))
