"""Pure: which rank is hung and which is slow, by what all ranks say of themselves."""

import pytest

from train.heartbeat import Record
from train.patience import AGREE, COMPUTE, ENDED, FETCH, SAVE
from train.stragglers import stragglers
from train.verdict import Sighting, judge

LIMIT_S = 42.0


def sighting(rank, beats, phase, silent_s=50.0, waits=False, still_s=0.0, limit_s=LIMIT_S):
    record = Record(rank, 100 + rank, "node", 9, 0.0, silent_s, limit_s, waits, beats, 7, phase, 0.0, 0.0, 0.0)
    return Sighting(record, still_s)


@pytest.mark.parametrize(
    ("ranks", "blamed", "problem"),
    [
        (  # one place, one of them is not waiting
            [sighting(0, 30, COMPUTE, waits=True), sighting(1, 30, COMPUTE)],
            [1],
            "rank 1 (pid 101 on node) does not get on in compute of step 7 since 50 s; the others wait in compute of "
            "step 7",
        ),
        (  # who is behind is to blame, also if it waits
            [sighting(0, 30, FETCH, waits=True), sighting(1, 32, AGREE, waits=True), sighting(2, 32, AGREE)],
            [0],
            "rank 0 (pid 100 on node) does not get on in fetch of step 7 since 50 s; the others wait in agree of "
            "step 7",
        ),
        (  # a process that does not run comes first
            [sighting(0, 30, FETCH), sighting(1, 32, AGREE, silent_s=1.0, still_s=10.0)],
            [1],
            "rank 1 (pid 101 on node) does not run (stopped, dead or cut off), in agree of step 7; the others wait in "
            "fetch of step 7",
        ),
        (  # two of them
            [sighting(rank, 30, FETCH, waits=rank == 0) for rank in range(3)],
            [1, 2],
            "rank 1 (pid 101 on node) does not get on in fetch of step 7 since 50 s; rank 2 (pid 102 on node) does not "
            "get on in fetch of step 7 since 50 s; the others wait in fetch of step 7",
        ),
        (
            [sighting(rank, 30, COMPUTE, waits=True) for rank in range(2)],
            [],
            "all ranks are in compute of step 7 since 50 s, none is behind: look at the network and the devices",
        ),
        (
            [sighting(0, 30, AGREE, waits=True), sighting(1, 40, ENDED, still_s=60.0)],
            [],
            "rank 1 (pid 101 on node) has ended, all others are in agree of step 7 since 50 s",
        ),
        (
            [sighting(0, 30, COMPUTE)],
            [0],
            "rank 0 (pid 100 on node) does not get on in compute of step 7 since 50 s",
        ),
        # who is to blame may take its time
        ([sighting(0, 30, AGREE, waits=True), sighting(1, 29, COMPUTE, silent_s=5.0)], None, None),
        ([sighting(0, 30, SAVE, waits=True), sighting(1, 30, SAVE, limit_s=500.0)], None, None),
        ([sighting(0, 30, AGREE), sighting(1, 29, SAVE, still_s=10.0, limit_s=500.0)], None, None),
    ],
)
def test_the_rank_that_the_others_wait_for_is_blamed(ranks, blamed, problem):
    verdict = judge(ranks, waited_s=50.0, still_limit_s=8.0)
    assert (verdict and [one.record.rank for one in verdict.blamed]) == blamed
    assert (verdict and verdict.problem) == problem


def test_only_a_process_that_does_not_run_is_to_be_killed():
    stopped, stuck = sighting(1, 30, COMPUTE, still_s=10.0), sighting(2, 30, COMPUTE)
    assert judge([sighting(0, 30, AGREE), stopped, stuck], 50.0, 8.0).stopped == [stopped]
    assert judge([sighting(0, 31, AGREE), stuck], 50.0, 8.0).stopped == []


@pytest.mark.parametrize(
    ("own_work", "slow"),
    [
        ([(1.0, 0.01), (1.0, 0.01), (3.0, 0.01)], [2]),
        ([(1.0, 0.01), (1.4, 0.01)], [1]),
        ([(1.0, 0.01), (1.2, 0.01)], []),  # less than 1.3 times
        ([(1.0, 0.01), (1.4, 0.2)], []),  # not steadily
        ([(1.0, 0.2), (1.4, 0.01)], []),  # as the others are not
        ([(1.0, 0.01), (0.5, 0.01), (1.0, 0.01)], []),  # a fast one
        ([(3.0, 0.01), (0.0, 0.0), (1.0, 0.01)], [0]),  # nothing is known of one
        ([(3.0, 0.01)], []),
        ([], []),
    ],
)
def test_only_a_rank_that_is_steadily_slower_than_the_median_one_is_a_straggler(own_work, slow):
    records = [
        Record(rank, 1, "node", 9, 0.0, 0.0, LIMIT_S, False, 30, 7, COMPUTE, 0.0, *own)
        for rank, own in enumerate(own_work)
    ]
    assert [record.rank for record, _ in stragglers(records)] == slow
