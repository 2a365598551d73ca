"""`python -m train trace`: what a run has seen at a step, or when it saw a document, for people and for programs."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import tyro

from shared.errors import ConfigError
from shared.format import TOKENIZER_NAME
from shared.rows import number_of
from shared.terminal import safe_text
from train.checkpoint_directory import step_of
from train.held_out import held_out
from train.input_rows import Asked, Row
from train.loss_colours import Decode, mean_loss, pieces
from train.provenance import Part
from train.replay import Replay
from train.token_losses import TokenLosses
from train.trace import SeenChunk, SeenStep, Sighting, Trace
from train.trace_lines import document_lines, problem_lines, step_lines

TOGETHER = 100
"""Steps whose documents are asked for at once."""


@dataclass(frozen=True)
class TraceOptions:
    """Tell which documents a run saw at a step, or at which steps it saw a document."""

    run: Path
    """Directory of the run."""
    step: str | None = None
    """An optimizer step, or several: 17 or 17..20. One that has not happened is told as it will be."""
    doc: str | None = None
    """Instead, a document: its id or url, FILE:ROW, or a piece of its text that at most ten have."""
    text: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the text that was seen, decoded from its tokens."""
    losses: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """With --step: the loss of every document and, as colours of its text, token, by the checkpoint nearest to it."""
    tokens: Path | None = None
    """The dataset (None: where the run had it)."""
    data: str | None = None
    """The inputs that the dataset was made of (None: as `make tokenize` has it, TOKENS without its "-tokens").
    Of several sources those of all, or a directory that has those of each under its name."""
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False
    """For programs: a line for each step or document."""


def trace(options: TraceOptions) -> None:
    """Print what is asked for.

    Raises: UserError for what there is not, and what cannot be known.
    """
    if (options.step is None) == (options.doc is None):
        raise ConfigError("either --step or --doc is wanted: see python -m train trace --help")
    if options.losses and options.step is None:
        raise ConfigError("--losses are those of a step: give --step, which --doc tells")
    replay = Replay(options.run, options.tokens)
    teller = Teller(options, Trace(replay), Asked(replay.tokens, options.data, tuple(replay.datasets.fingerprints)))
    if options.step is not None:
        teller.tell_steps(parse_steps(options.step))
    else:
        assert options.doc is not None, "one of them is given"
        teller.tell_documents(options.doc)


@dataclass(frozen=True)
class Teller:
    """What was found out, with what the inputs say of it."""

    options: TraceOptions
    trace: Trace
    asked: Asked

    def tell_steps(self, steps: range) -> None:
        """Print the documents of each of `steps`, of all or, if the run has not all of them, of none."""
        self.trace.check(steps[0])
        self.trace.check(steps[-1])
        for first in range(steps.start, steps.stop, TOGETHER):
            seen = [self.trace.step(step) for step in steps[first - steps.start :][:TOGETHER]]
            about = self.asked.about((part.source, part.row) for step in seen for part in _parts(step.chunks))
            told = [self._told_step(step, about) for step in seen]
            self._print(told, step_lines)

    def tell_documents(self, wanted: str) -> None:
        """Print when each of the documents that are meant was seen."""
        row = self._row(wanted)
        found = self.asked.find(wanted) if row is None else self.asked.about([row]).values()
        self._print([self._told_document(about) for about in found], document_lines)

    def _told_document(self, about: dict[str, Any]) -> dict[str, Any]:
        source, row, replay = about["source"], about["row"], self.trace.replay
        place = self.trace.rows.shard_row(source, row)
        return {
            **about,
            **self._text(place.shard, self.trace.provenance.ids(*place)),
            "beginning": self.beginning,
            "last_step": replay.records.last_step,
            "total_steps": replay.total_steps,
            "validation": asdict(held_out(replay, source, row)),
            "sightings": [_told_sighting(sighting) for sighting in self.trace.sightings(source, row)],
        }

    def _row(self, wanted: str) -> Row | None:
        """The row that FILE:ROW names, if `wanted` is one of a file of the dataset."""
        source, _, row = wanted.rpartition(":")
        number = number_of(row)
        return (source, number) if source in self.trace.rows.sources and number is not None else None

    def _told_step(self, step: SeenStep, about: dict[Row, dict[str, Any]]) -> dict[str, Any]:
        told = {"run": str(self.options.run), "beginning": self.beginning, **asdict(step)}
        for chunk, plain in zip(step.chunks, told["chunks"], strict=True):
            plain["documents"] = [
                {**about[part.source, part.row], **asdict(part), **self._text(chunk.shard, self._extent(chunk, part))}
                for part in chunk.documents
            ]
        return told | (self._losses(step, told["chunks"]) if self.options.losses else {})

    def _losses(self, step: SeenStep, told: list[dict[str, Any]]) -> dict[str, Any]:
        """Adds the losses to what is told of the chunks; which checkpoint they are by, and the mean of all."""
        (path, found), every = self.token_losses.of(step), list[float | None]()
        for chunk, plain, losses in zip(step.chunks, told, found, strict=True):
            for part, document, of_part in zip(chunk.documents, plain["documents"], losses.parts, strict=True):
                ids = self._ids(chunk.shard, self._extent(chunk, part))
                document |= {"loss": mean_loss(of_part), "losses": of_part, "ids": ids}
                document["pieces"] = list(pieces(ids, of_part, self.decode))
                every += of_part
        return {"checkpoint": {"path": str(path), "step": step_of(path)}, "checkpoint_loss": mean_loss(every)}

    def _extent(self, chunk: SeenChunk, part: Part) -> range:
        """Where the part's ids are in the chunk's shard."""
        first_row = self.trace.replay.index.shards[chunk.shard].first_row
        return self.trace.provenance.ids(chunk.shard, part.row - first_row)[part.start : part.stop]

    def _ids(self, shard: int, ids: range) -> list[int]:
        found: list[int] = self.tokens(shard)[ids.start : ids.stop].tolist()
        return found

    def _text(self, shard: int, ids: range) -> dict[str, str]:
        return {"text": self.decode(self._ids(shard, ids))} if self.options.text else {}

    @property
    def beginning(self) -> dict[str, Any] | None:
        """The run that this one began from, and the step of its checkpoint; None if from nothing."""
        told = self.trace.replay.identity.get("beginning")
        return told and {"run": told["run"], "step": told["step"]}

    @cached_property
    def tokens(self) -> Callable[[int], npt.NDArray[np.unsignedinteger]]:
        """The ids of a shard."""
        return lru_cache(maxsize=16)(self.trace.replay.datasets.open_tokens)

    @cached_property
    def token_losses(self) -> TokenLosses:
        """By the models of the run."""
        return TokenLosses(self.trace.replay)

    @cached_property
    def decode(self) -> Decode:
        """The text of some ids."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.trace.replay.datasets.parts[0].tokens / TOKENIZER_NAME))
        return partial(tokenizer.decode, skip_special_tokens=False)

    def _print(self, told: list[dict[str, Any]], lines: Callable[[dict[str, Any]], Iterator[str]]) -> None:
        for document in told:
            if self.options.as_json:
                print(json.dumps(document))
            else:
                print("\n".join(lines(document)))
        if not self.options.as_json:
            print(*problem_lines(told), sep="\n", end="")


def _parts(chunks: Iterable[SeenChunk]) -> Iterator[Part]:
    return (part for chunk in chunks for part in chunk.documents)


def _told_sighting(sighting: Sighting) -> dict[str, Any]:
    """A sighting as one record: the parts of the document that a step had in one chunk."""
    parts = [{"start": part.start, "stop": part.stop, "place": part.place} for part in sighting.chunk.documents]
    chunk = asdict(replace(sighting.chunk, documents=[]))
    del chunk["documents"]
    return {"step": sighting.step, "state": sighting.state, "learned": sighting.learned, **chunk, "parts": parts}


def parse_steps(steps: str) -> range:
    """The steps that are asked for.

    >>> list(parse_steps("17")), list(parse_steps("17..19"))
    ([17], [17, 18, 19])

    Raises: ConfigError if it is not a step or a range of them.
    """
    first, dots, last = steps.partition("..")
    start, end = number_of(first), number_of(last if dots else first)
    if start is None or end is None or start > end:
        shown = safe_text(steps[:60])
        raise ConfigError(f"--step is '{shown}': a step or a range of them is wanted, as in 17 or 17..20")
    return range(start, end + 1)
