"""The views of several datasets as one, whose shards are numbered end to end.

Legend: B sequences, T positions.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from shared.cursor import Chunks
from train.buffers import Buffers
from train.config import RunConfig
from train.datasets import Datasets
from train.sequences import DIGEST_BYTES, Sequences, Spans
from train.views import View, open_view


class MixedView:
    """Chunks of any of the views, in any order: each is what its own view gives."""

    def __init__(self, views: Sequence[View]) -> None:
        self.views, self._buffers = views, Buffers()
        self.shard_chunks = tuple(chunks for view in views for chunks in view.shard_chunks)
        self._first_shards = np.cumsum([0, *(len(view.shard_chunks) for view in views)], dtype=np.int64)

    @property
    def packing(self) -> str | None:
        """A hash over the packings' fingerprints; None if the plain streams are read, which is asked of all alike."""
        packings = [view.packing for view in self.views if view.packing is not None]
        return hashlib.sha256("\n".join(packings).encode()).hexdigest() if packings else None

    def check(self) -> None:
        """See View."""
        for view in self.views:
            view.check()

    def num_targets(self, shards: Chunks, offsets: Chunks) -> Chunks:
        """See View."""
        num_targets = np.empty(len(shards), np.int64)
        for number, rows, places in self._of_each(shards, offsets):
            num_targets[rows] = self.views[number].num_targets(*places)
        return num_targets

    def will_need(self, shards: Chunks, offsets: Chunks) -> None:
        """See View."""
        for number, _, places in self._of_each(shards, offsets):
            self.views[number].will_need(*places)

    def read(self, shards: Chunks, offsets: Chunks) -> Sequences:
        """See View."""
        parts = [(rows, self.views[number].read(*places)) for number, rows, places in self._of_each(shards, offsets)]
        if len(parts) == 1:
            return parts[0][1]
        first = parts[0][1]
        dtype = np.result_type(*(part.ids.dtype for _, part in parts))
        ids = self._buffers.unused((len(shards), first.ids.shape[1]), dtype)
        num_targets = np.empty(len(shards), np.int64)
        row_digests = np.empty((len(shards), DIGEST_BYTES), np.uint8)
        starts_BT = None if first.starts_BT is None else np.empty((len(shards), first.starts_BT.shape[1]), np.int32)
        for rows, part in parts:
            ids[rows], num_targets[rows], row_digests[rows] = part.ids, part.num_targets, part.row_digests
            if starts_BT is not None and part.starts_BT is not None:
                starts_BT[rows] = part.starts_BT
        return Sequences(ids, num_targets, row_digests, starts_BT)

    def spans(self, shards: Chunks, offsets: Chunks) -> Spans:
        """See View."""
        parts = []
        for number, rows, places in self._of_each(shards, offsets):
            found = self.views[number].spans(*places)
            parts.append(found._replace(shards=found.shards + self._first_shards[number], rows=rows[found.rows]))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        by_row = np.argsort(columns[Spans._fields.index("rows")], kind="stable")
        return Spans(*(column[by_row] for column in columns))

    def holding(self, shard: int, ids: range) -> Chunks:
        """See View."""
        number = int(np.searchsorted(self._first_shards, shard, side="right")) - 1
        return self.views[number].holding(shard - int(self._first_shards[number]), ids)

    def _of_each(self, shards: Chunks, offsets: Chunks) -> Iterator[tuple[int, Chunks, tuple[Chunks, Chunks]]]:
        """Of each view that any of the chunks is of: its number, their places in the arrays, and what it calls them."""
        numbers = np.searchsorted(self._first_shards, shards, side="right") - 1
        for number in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == number)
            yield number, rows, (shards[rows] - self._first_shards[number], offsets[rows])


def view_of(datasets: Datasets, config: RunConfig) -> View:
    """The chunks of all datasets of a run, as `config` cuts them.

    Raises: FormatError if one has no such packing, or that is of another dataset.
    """
    views = [open_view(part.tokens, part.index, config) for part in datasets.parts]
    return MixedView(views) if config.data.sources else views[0]


def open_validation(datasets: Datasets, config: RunConfig) -> tuple[View, str] | None:
    """The view of the datasets' validation splits and their fingerprint, if `config` validates on them.

    Raises: FormatError if there is none, or none of the same tokenizer.
    """
    if config.data.validation != "split" or not config.data.validation_chunks:
        return None
    held_out = datasets.validation
    return view_of(held_out, config), held_out.index.fingerprint
