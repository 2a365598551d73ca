"""Which rows become documents, and why the others do not.

The fate of a row depends on the row alone, or for duplicates on a list made beforehand, never on the batch or the shard
it comes in. Of several reasons to leave a row out the first counts: null, empty, filtered out, duplicate, other split.
"""

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from preprocess.batches import Rows, text_sizes
from preprocess.digests import is_drawn, text_digests
from shared.format import Selection

if TYPE_CHECKING:
    from preprocess.where import Condition

Fates = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
NO_ROWS = np.zeros(0, np.int64)


def _condition(text: str) -> "Condition":
    from preprocess.where import Condition  # here: polars takes a worker longer to import than all it else needs

    return Condition(text)


class Fate(IntEnum):
    """What becomes of a row."""

    DOCUMENT = 0
    NULL = 1
    EMPTY = 2
    FILTERED = 3
    DUPLICATE = 4
    OTHER_SPLIT = 5


class Selector:
    """Decides about the rows of one input file; `duplicates` are the numbers of its rows, in order, that repeat others.

    With `whole`, both splits are one. `columns` are those that it looks at beside the text.

    Raises: ConfigError if the condition is not understood.
    """

    def __init__(
        self, selection: Selection, duplicates: npt.NDArray[np.integer] | None = None, *, whole: bool = False
    ) -> None:
        self._selection, self._duplicates = selection, NO_ROWS if duplicates is None else duplicates
        self._validation_share = 0.0 if whole else selection.validation_share
        self._where = None if selection.where is None else _condition(selection.where)
        self.columns = self._where.columns if self._where else []

    def fates(self, rows: Rows, first_row: int) -> Fates:
        """The fate of each of `rows`, of which the first is row `first_row` of the file.

        Raises: ConfigError if the condition does not fit the columns.
        """
        fates = np.zeros(len(rows.texts), np.uint8)
        fates[text_sizes(rows.texts) == 0] = Fate.EMPTY
        if rows.texts.null_count:
            fates[rows.texts.is_null().to_numpy(zero_copy_only=False)] = Fate.NULL
        if self._where is not None:
            _leave_out(fates, ~self._where.holds(rows.others), Fate.FILTERED)
        if len(self._duplicates):
            here = np.searchsorted(self._duplicates, [first_row, first_row + len(fates)])
            repeats = np.zeros(len(fates), np.bool_)
            repeats[self._duplicates[slice(*here)] - first_row] = True
            _leave_out(fates, repeats, Fate.DUPLICATE)
        if self._validation_share:
            drawn = is_drawn(text_digests(rows.texts), self._validation_share)
            _leave_out(fates, drawn != (self._selection.split == "validation"), Fate.OTHER_SPLIT)
        return fates


def columns_read(selection: Selection, token_counts: str | None) -> list[str]:
    """The columns that are read beside the text.

    >>> columns_read(Selection('language == "en"'), "token_count")
    ['language', 'token_count']
    """
    return [*Selector(selection).columns, *([token_counts] if token_counts else [])]


def kept_texts(texts: Any, fates: Fates) -> Any:
    """`texts` with an empty text in place of each that is no document."""
    if fates.max(initial=0) <= Fate.NULL and not texts.null_count:
        return texts
    if (fates <= Fate.EMPTY).all():
        return texts.fill_null("")
    return pc.if_else(pa.array(fates == Fate.DOCUMENT), texts, pa.scalar("", pa.large_string()))


def _leave_out(fates: Fates, which: Mask, fate: Fate) -> None:
    fates[which & (fates == Fate.DOCUMENT)] = fate
