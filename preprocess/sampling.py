"""A sample of the input's text: about as many bytes as asked for, spread evenly over all of it, the same every time.

What is taken depends on the footers and the texts alone. Every row group earns its share of the budget in proportion to
its text; where enough is owed for a worthwhile piece, that much is read. So the sample of a huge input opens a few
hundred or, of as many files, a few thousand row groups, and every file of about average size is among them.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from preprocess.batches import text_sizes
from preprocess.select import Selector, kept_texts
from preprocess.sources import BadFileError, Footer, RowGroup, find_sources, has_column, read_footer, read_rows
from shared.format import Selection

MIN_PIECES, MAX_PIECES = 256, 4096  # what is read in one place is the budget over the number of files, within these
SPREAD = 16  # in a row group of which much is owed, at most this many bytes are read for one that is taken
MIN_PIECE_BYTES = 16 << 10  # unless the budget is of a few of them
MAX_CHARACTER_BYTES = 4
EVERY_ROW = Selection()
Rows = tuple[Any, Any | None]  # texts as a large_string array, and as many labels if there are any


@dataclass(frozen=True)
class Sample:
    """About `size_bytes` of text in the column `column` of the files that `footers` are of; all, if there is no more.

    Texts that `selection` leaves out, null and empty ones are no part of it. Of a larger input, no text is taken
    beyond the size of a piece. With `skip_bad`, a file that cannot be read ends where that is found out.
    """

    root: Path
    footers: Sequence[Footer]
    column: str
    size_bytes: int
    skip_bad: bool = False
    selection: Selection = EVERY_ROW

    @property
    def expected_bytes(self) -> int:
        """What the footers promise of it."""
        return min(self.size_bytes, sum(footer.text_bytes for footer in self.footers))

    def __iter__(self) -> Iterator[Any]:
        """The texts in reading order, as large_string arrays."""
        return (texts for texts, _ in self.labelled(None))

    def labelled(self, label: str | None) -> Iterator[Rows]:
        """The texts with what the column `label` says of each, where a file has such a column."""
        total_bytes = sum(footer.text_bytes for footer in self.footers)
        if total_bytes > self.size_bytes:
            return self._spread(label, self.size_bytes / total_bytes)
        everything = (rows for footer in self.footers for _, *rows in self._rows(footer, 0, label))
        return _until(self.size_bytes, (_only(text_sizes(texts) > 0, texts, labels) for texts, labels in everything))

    def _spread(self, label: str | None, share: float) -> Iterator[Rows]:
        num_pieces = min(max(MIN_PIECES, len(self.footers)), MAX_PIECES)
        piece_bytes = max(self.size_bytes // num_pieces, min(MIN_PIECE_BYTES, self.size_bytes // 4), 1)
        owed = 0.0
        for footer in self.footers:
            number = 0
            while number < len(footer.row_groups):
                owed += share * footer.row_groups[number].text_bytes
                if owed >= piece_bytes:
                    number, owed = yield from self._pay(owed, share, piece_bytes, footer, number, label)
                number += 1

    def _pay(
        self, owed: float, share: float, piece_bytes: int, footer: Footer, number: int, label: str | None
    ) -> Generator[Rows, None, tuple[int, float]]:
        """Read on from row group `number` until nothing is owed; the last row group that was read and what is owed."""
        period, read_bytes = _period(footer.row_groups[number], owed, piece_bytes), 0
        for place, texts, labels in self._rows(footer, number, label):
            if place > number:
                owed += share * sum(group.text_bytes for group in footer.row_groups[number + 1 : place + 1])
                period, read_bytes, number = _period(footer.row_groups[place], owed, piece_bytes), 0, place
            sizes = text_sizes(texts)
            taken = chosen(sizes, read_bytes, piece_bytes, period, owed)
            read_bytes += int(sizes.sum())
            owed -= int(np.minimum(sizes[taken], piece_bytes).sum())
            yield _shortened(*_only(taken, texts, labels), piece_bytes)
            if owed <= 0:
                return number, owed
        return len(footer.row_groups), owed

    def _rows(self, footer: Footer, first_group: int, label: str | None) -> Iterator[tuple[int, Any, Any | None]]:
        """The rows from a row group on, with the row group that they are of."""
        ends = np.cumsum([group.num_rows for group in footer.row_groups[first_group:]])
        num_rows, groups = 0, range(first_group, len(footer.row_groups))
        selector = Selector(self.selection)
        # What cannot be read and may be skipped is left out, and named, when its shards are written.
        with suppress(BadFileError) if self.skip_bad else nullcontext():
            for texts, labels in read_labelled(self.root / footer.path, groups, self.column, label, selector):
                yield first_group + int(np.searchsorted(ends, num_rows, side="right")), texts, labels
                num_rows += len(texts)


def open_sample(data: str, column: str, size_bytes: int, selection: Selection = EVERY_ROW) -> Sample:
    """A sample of the input files of `data` (directory, glob or file).

    Raises: InputError if there are none, or one that cannot be read.
    """
    root, files = find_sources(data)
    others = Selector(selection).columns
    footers = [read_footer(file, root, column, others) for file in files]
    return Sample(root, footers, column, size_bytes, selection=selection)


def read_labelled(path: Path, groups: range, column: str, label: str | None, selector: Selector) -> Iterator[Rows]:
    """Texts of row groups in bounded batches, with the column `label`, read as text, if the file has one.

    A row that is no document for `selector` has an empty text.

    Raises: BadFileError naming what cannot be read.
    """
    labels = [label] if label is not None and has_column(path, label) else []
    row = 0
    for rows in read_rows(path, groups, column, [*selector.columns, *labels]):
        texts = kept_texts(rows.texts, selector.fates(rows, row))
        yield texts, rows.others.column(label).cast(pa.large_string()) if labels else None
        row += len(texts)


def chosen(
    sizes: npt.NDArray[np.int64], first_byte: int, piece_bytes: int, period_bytes: int, owed_bytes: float
) -> npt.NDArray[np.bool_]:
    """Which texts are taken: those that start in the first `piece_bytes` of every `period_bytes`, until enough are.

    `sizes` in bytes are of texts that start `first_byte` into their row group; one of size 0 is never taken, and none
    counts for more than a piece.

    >>> chosen(np.array([4, 4, 0, 4, 4, 4]), 0, 4, 8, 100).tolist()
    [True, False, False, True, False, True]
    >>> chosen(np.array([4, 4, 4, 4]), 0, 4, 4, 9).tolist()
    [True, True, True, False]
    """
    starts = first_byte + np.cumsum(sizes) - sizes
    taken: npt.NDArray[np.bool_] = (starts % period_bytes < piece_bytes) & (sizes > 0)
    counted = np.where(taken, np.minimum(sizes, piece_bytes), 0)
    return taken & (np.cumsum(counted) - counted < owed_bytes)


def _period(group: RowGroup, owed: float, piece_bytes: int) -> int:
    """How far apart pieces are, from start to start, so that what is owed is spread over the row group."""
    return int(piece_bytes * min(max(group.text_bytes / owed, 1), SPREAD))


def _until(size_bytes: int, rows: Iterable[Rows]) -> Iterator[Rows]:
    """`rows` until they hold `size_bytes`: a footer may promise less than is there, where texts repeat."""
    for texts, labels in rows:
        yield texts, labels
        size_bytes -= int(text_sizes(texts).sum())
        if size_bytes <= 0:
            return


def _only(taken: npt.NDArray[np.bool_], texts: Any, labels: Any | None) -> Rows:
    if taken.all():
        return texts, labels
    mask = pa.array(taken)
    return texts.filter(mask), None if labels is None else labels.filter(mask)


def _shortened(texts: Any, labels: Any | None, most_bytes: int) -> Rows:
    """The texts cut to `most_bytes`, so that one huge document is not half of the sample."""
    most_bytes = max(most_bytes, MAX_CHARACTER_BYTES)
    if int(text_sizes(texts).max(initial=0)) > most_bytes:
        cut = [text.encode()[:most_bytes].decode(errors="ignore") for text in texts.to_pylist()]
        return pa.array(cut, pa.large_string()), labels
    return texts, labels
