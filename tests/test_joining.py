"""The ranks of one start agree on a name that no earlier start had, in a store that remembers those."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from train import joining
from train.joining import fresh_name


def names(store, size):
    with ThreadPoolExecutor(size) as pool:
        return [*pool.map(lambda rank: fresh_name(store, rank, size), reversed(range(size)))]


def test_every_start_in_one_store_has_a_name_of_its_own_that_all_its_ranks_know():
    store, seen = dist.HashStore(), set()
    for size in (3, 3, 2, 4, 1):
        (name,) = set(names(store, size))
        seen.add(name)
    assert len(seen) == 5


def test_what_a_rank_that_died_while_it_asked_has_left_misleads_nobody(monkeypatch):
    store = dist.HashStore()
    for missing, rank in (("rank 0", 1), (r"ranks \[1\]", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(joining, "PATIENCE_S", 0.1)
            with pytest.raises(TimeoutError, match=rf"^{missing} did not start within 0 s, on "):
                fresh_name(store, rank, 2)
    assert len(set(names(store, 2))) == 1
