"""What a run's readers serve and its models are given, written down while it trains: the oracle of `trace`.

Put into the trainer from outside. What is written down are the ids alone: which documents they are of, `Texts` finds by
looking at them, with nothing of the index, the order or the cursor.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import train.loop
from train.backoff import Backoff
from train.collective import rank
from train.data import ChunkReader
from train.loss import IGNORED
from train.model import ArgonneModel


@contextmanager
def recording(directory: Path) -> Iterator[None]:
    """Meanwhile, write down for each step what this rank read and which microbatches its first stage was given.

    A step that is done again replaces what it was before.
    """
    now = {"step": 0}
    read, given = {}, defaultdict(list)
    take_step, fetch, insist, forward = (
        train.loop.take_step,
        ChunkReader.fetch,
        Backoff._insist,
        ArgonneModel.forward,
    )

    def recorded_step(parts, progress):
        now["step"] = progress.step + 1
        outcome = take_step(parts, progress)
        now["step"] = 0
        return outcome

    def recorded_fetch(self, position):
        batch, waited = fetch(self, position)
        if now["step"]:
            read[now["step"]] = [batch.inputs_BT.tolist(), batch.targets_BT.tolist()]
        return batch, waited

    def recorded_insist(self, work):
        def again():
            given[now["step"]] = []
            return work()

        return insist(self, again)

    def recorded_forward(self, x, *arguments, **named):
        if now["step"] and self.part.is_first:
            given[now["step"]].append(x.tolist())
        return forward(self, x, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.loop, "take_step", recorded_step)
        patch.setattr(ChunkReader, "fetch", recorded_fetch)
        patch.setattr(Backoff, "_insist", recorded_insist)
        patch.setattr(ArgonneModel, "forward", recorded_forward)
        try:
            yield
        finally:
            directory.mkdir(parents=True, exist_ok=True)
            with open(directory / f"rank{rank()}.jsonl", "a") as file:
                for step, (inputs, targets) in read.items():
                    line = {"step": step, "inputs": inputs, "targets": targets, "microbatches": given[step]}
                    file.write(json.dumps(line) + "\n")


def recorded(directory: Path) -> dict[int, dict[int, list[dict]]]:
    """By step and rank the sequences that it read, in order, each with its ids and microbatch (None: a later stage)."""
    found: dict[int, dict[int, list[dict]]] = defaultdict(dict)
    for path in sorted(directory.glob("rank*.jsonl")):
        number = int(path.stem.removeprefix("rank"))
        for line in map(json.loads, path.read_text().splitlines()):
            numbers = [place for place, batch in enumerate(line["microbatches"]) for _ in batch]
            assert [row for batch in line["microbatches"] for row in batch] == (line["inputs"] if numbers else [])
            rows = zip(line["inputs"], line["targets"], numbers or [None] * len(line["inputs"]), strict=True)
            if number == 0:  # the first of a start: of the start before, whose ranks were others, nothing is left
                found[line["step"]] = {}
            found[line["step"]][number] = [
                {"inputs": inputs, "targets": targets, "microbatch": microbatch} for inputs, targets, microbatch in rows
            ]
    return found


class Texts:
    """The documents of `write_documents`, in which no two ids are alike but those that end one."""

    def __init__(self, shards: Sequence[Sequence[int]], end: int) -> None:
        """No document is of the end alone, which would look like any other."""
        self.end = end
        self.places: dict[int, tuple[int, int]] = {}
        """Shard and place there of each id."""
        self.documents: list[list[tuple[int, int]]] = []
        """Row (over all shards) and place in its document of each place of a shard."""
        row = count = 0
        for number, sizes in enumerate(shards):
            places = []
            for size in sizes:
                assert size != 1
                for place in range(size - 1):
                    self.places[count] = number, len(places) + place
                    count += 1
                places += [(row, place) for place in range(size)]
                row += 1
            self.documents.append(places)

    def parts(self, inputs: Sequence[int], targets: Sequence[int]) -> list[tuple[int, int, int]]:
        """Row, first and last + 1 of the ids of each document in a sequence."""
        seen: dict[int, list[int]] = {}
        real = [place for place, target in enumerate(targets) if target != IGNORED]
        for place in real:
            shard, at = self._place(inputs, targets, place)
            for row, within in (self.documents[shard][at], self.documents[shard][at + 1]):
                seen.setdefault(row, []).append(within)
        for places in seen.values():
            assert sorted(set(places)) == list(range(min(places), max(places) + 1))
        return [(row, min(places), max(places) + 1) for row, places in seen.items()]

    def _place(self, inputs, targets, place) -> tuple[int, int]:
        """Where the input at `place` stands in the shards: an end stands before its target."""
        if inputs[place] != self.end:
            return self.places[inputs[place]]
        if targets[place] != self.end:
            shard, at = self.places[targets[place]]
            return shard, at - 1
        raise AssertionError("two ends in a row are documents of an end alone")
