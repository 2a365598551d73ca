"""`--token-counts`: a column that says how many ids each text has, as FineWeb's token_count does for GPT-2."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from preprocess.encode import Lengths
from shared.errors import InputError


def other_count(counts: Any, lengths: Lengths, counted: npt.NDArray[np.bool_]) -> tuple[int, str] | None:
    """The first row, among those `counted`, with another count than it has ids, and that count; None if all agree.

    Raises: InputError if the column does not hold numbers.

    >>> other_count(pa.array([3, 4, None]), np.array([3, 5, 1]), np.array([True, True, True]))
    (1, '4')
    """
    if not (pa.types.is_integer(counts.type) or pa.types.is_floating(counts.type)):
        raise InputError(f"--token-counts names a column of {counts.type}: name one that holds numbers")
    unequal = counts.cast(pa.float64(), safe=False).fill_null(-1).to_numpy(zero_copy_only=False) != lengths
    (rows,) = np.nonzero(unequal & counted)
    return (int(rows[0]), str(counts[int(rows[0])])) if len(rows) else None
