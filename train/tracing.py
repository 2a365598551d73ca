"""`python -m train trace`: what a run has seen at a step, or when it saw a document, for people and for programs."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from shared.errors import ConfigError
from shared.format import TOKENIZER_NAME, open_tokens
from shared.terminal import safe_text
from train.held_out import held_out
from train.input_rows import Asked, Row
from train.provenance import Part
from train.replay import Replay
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
    """Instead, a document: its id or url, FILE:ROW, or a piece of its text that is in no other."""
    text: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the text that was seen, decoded from its tokens."""
    tokens: Path | None = None
    """The dataset (None: where the run had it)."""
    data: str | None = None
    """The inputs that the dataset was made of (None: as `make tokenize` has it, TOKENS without its "-tokens")."""
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False
    """For programs: a line for each step, or one for the document."""


def trace(options: TraceOptions) -> None:
    """Print what is asked for.

    Raises: UserError for what there is not, and what cannot be known.
    """
    if (options.step is None) == (options.doc is None):
        raise ConfigError("either --step or --doc is wanted: see python -m train trace --help")
    replay = Replay(options.run, options.tokens)
    teller = Teller(options, Trace(replay), Asked(replay.tokens, options.data))
    if options.step is not None:
        teller.tell_steps(parse_steps(options.step))
    else:
        assert options.doc is not None, "one of them is given"
        teller.tell_document(options.doc)


@dataclass(frozen=True)
class Teller:
    """What was found out, with what the inputs say of it."""

    options: TraceOptions
    trace: Trace
    asked: Asked

    def tell_steps(self, steps: range) -> None:
        """Print the documents of each of `steps`."""
        for first in range(steps.start, steps.stop, TOGETHER):
            seen = [self.trace.step(step) for step in steps[first - steps.start :][:TOGETHER]]
            about = self.asked.about((part.source, part.row) for step in seen for part in _parts(step.chunks))
            told = [self._told_step(step, about) for step in seen]
            self._print(told, step_lines)

    def tell_document(self, wanted: str) -> None:
        """Print when a document was seen."""
        row = self._row(wanted)
        about = self.asked.about([row])[row] if row is not None else self.asked.find(wanted)
        source, number = row = (about["source"], about["row"])
        sightings = self.trace.sightings(source, number)
        text = {"text": self._decoder()(*self._whole(row))} if self.options.text else {}
        replay = self.trace.replay
        document = {
            **about,
            **text,
            "last_step": replay.records.last_step,
            "total_steps": replay.total_steps,
            "validation": asdict(held_out(replay, *row)),
            "sightings": [_told_sighting(sighting) for sighting in sightings],
        }
        self._print([document], document_lines)

    def _row(self, wanted: str) -> Row | None:
        """The row that FILE:ROW names, if `wanted` is one of a file of the dataset."""
        source, _, row = wanted.rpartition(":")
        is_row = source in self.trace.rows.sources and row.isascii() and row.isdecimal()
        return (source, int(row)) if is_row else None

    def _told_step(self, step: SeenStep, about: dict[Row, dict[str, Any]]) -> dict[str, Any]:
        told = asdict(step)
        decode = self._decoder() if self.options.text else None
        for chunk, plain in zip(step.chunks, told["chunks"], strict=True):
            plain["documents"] = [
                {**about[part.source, part.row], **asdict(part), **self._text(decode, chunk, part)}
                for part in chunk.documents
            ]
        return {"run": str(self.options.run), **told}

    def _text(self, decode: "Decode | None", chunk: SeenChunk, part: Part) -> dict[str, str]:
        if decode is None:
            return {}
        whole = self._ids(chunk.shard, part.row)
        return {"text": decode(chunk.shard, whole[part.start : part.stop])}

    def _ids(self, shard: int, row: int) -> range:
        return self.trace.provenance.ids(shard, row - self.trace.replay.index.shards[shard].first_row)

    def _whole(self, row: Row) -> tuple[int, range]:
        shard = self.trace.rows.shard_row(*row).shard
        return shard, self._ids(shard, row[1])

    def _decoder(self) -> "Decode":
        from tokenizers import Tokenizer

        replay = self.trace.replay
        tokenizer = Tokenizer.from_file(str(replay.tokens / TOKENIZER_NAME))

        def decode(shard: int, ids: range) -> str:
            found = open_tokens(replay.tokens, replay.index, shard)[ids.start : ids.stop].tolist()
            text: str = tokenizer.decode(found, skip_special_tokens=False)
            return text

        return decode

    def _print(self, told: list[dict[str, Any]], lines: Callable[[dict[str, Any]], Iterator[str]]) -> None:
        for document in told:
            if self.options.as_json:
                print(json.dumps(document))
            else:
                print("\n".join(lines(document)))
        if not self.options.as_json:
            print(*problem_lines(told), sep="\n", end="")


Decode = Callable[[int, range], str]


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
    numbers = [first, last] if dots else [first, first]
    if not all(number.isascii() and number.isdecimal() for number in numbers) or int(numbers[0]) > int(numbers[1]):
        raise ConfigError(f"--step is '{safe_text(steps)}': a step or a range of them is wanted, as in 17 or 17..20")
    return range(int(numbers[0]), int(numbers[1]) + 1)
