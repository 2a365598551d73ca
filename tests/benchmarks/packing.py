"""Documents of one shard into chunks, against best fit by one bisection for each piece that lacks all the rest."""

from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt

from preprocess.placing import place_documents
from tests.benchmarks.measure import Comparison, compare

LENGTH, NUM_DOCUMENTS = 2048, 200_000


def measure() -> Comparison:
    """Documents a second at length 2,048."""
    sizes = document_sizes(NUM_DOCUMENTS, seed=0)
    offsets, short = np.cumsum([0, *sizes]), np.minimum(sizes - 1, LENGTH)

    def ours() -> None:
        place_documents(offsets, LENGTH, whole=False)

    return compare("pack", "documents/s", NUM_DOCUMENTS, ours, lambda: one_by_one(short, LENGTH), rounds=3)


def document_sizes(count: int, seed: int) -> npt.NDArray[np.int64]:
    """Sizes about as uneven as those of documents on the web, of some 900 ids."""
    return np.maximum(np.random.default_rng(seed).lognormal(6, 1.3, count).astype(np.int64), 2)


def one_by_one(sizes: npt.NDArray[np.int64], length: int) -> list[int]:
    """Rooms that are left by best-fit decreasing, in plain Python."""
    rooms: list[int] = []
    for size in np.sort(sizes)[::-1].tolist():
        number = bisect_left(rooms, size)
        room = rooms.pop(number) if number < len(rooms) else length
        if room > size:
            insort(rooms, room - size)
    return rooms
