"""What the formulas say of a schedule is what torch's own schedule does, acted out with passes of one second."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble
from torch.testing._internal.distributed.fake_pg import FakeStore

from train.bubble import held_parts, theoretical_bubble
from train.layout import Layout
from train.pipeline import SCHEDULES

CASES = [
    *[("1f1b", stages, 1, microbatches) for stages, microbatches in ((1, 4), (2, 2), (2, 8), (4, 4), (4, 16))],
    *[("interleaved-1f1b", stages, 2, microbatches) for stages, microbatches in ((2, 2), (4, 8), (4, 10))],
    *[("interleaved-1f1b", stages, 3, microbatches) for stages, microbatches in ((2, 8), (4, 6))],
    *[("zero-bubble", stages, 1, microbatches) for stages, microbatches in ((1, 4), (2, 8), (4, 4), (4, 10))],
    *[("zero-bubble", stages, 2, microbatches) for stages, microbatches in ((2, 2), (4, 8))],
]


@pytest.fixture
def orders():
    """torch's order of work for every stage: (kind, part, microbatch), kinds F, I (or B for both) and W."""

    def make(schedule, stages, parts, microbatches):
        if schedule == "1f1b":  # torch does not plan it, it does it
            return [one_forward_one_backward(stage, stages, microbatches) for stage in range(stages)]
        dist.init_process_group("fake", rank=0, world_size=stages, store=FakeStore())
        held = [
            PipelineStage(torch.nn.Linear(1, 1), part * stages, stages * parts, torch.device("cpu"))
            for part in range(parts)
        ]
        orders = SCHEDULES[schedule](held, microbatches, loss_fn=torch.sum).pipeline_order
        dist.destroy_process_group()
        return [
            [(a.computation_type.value, a.stage_index, a.microbatch_index) for a in orders[stage] if is_work(a)]
            for stage in range(stages)
        ]

    return make


def one_forward_one_backward(stage, stages, microbatches):
    warmup = min(microbatches, stages - stage)
    order = [("F", stage, number) for number in range(warmup)]
    for number in range(microbatches):
        order.append(("B", stage, number))
        if number + warmup < microbatches:
            order.append(("F", stage, number + warmup))
    return order


def is_work(action):
    return action is not None and action.computation_type.value in {"F", "I", "B", "W"}


def seconds(kind):
    """Of a forward pass, of one for the inputs' gradients, and of one for the weights' gradients."""
    return 2.0 if kind == "B" else 1.0


def waits_for(kind, part, microbatch, parts):
    if kind == "F":
        return ("F", part - 1, microbatch) if part else None
    if kind in "IB":
        return ("I", part + 1, microbatch) if part < parts - 1 else ("F", part, microbatch)
    return ("I", part, microbatch)


def acted_out(orders, parts):
    """Share of the time that stages wait."""
    ended, clocks, queues = {}, [0.0] * len(orders), [list(order) for order in orders]
    while any(queues):
        moved = False
        for stage, queue in enumerate(queues):
            while queue and waits_for(*queue[0], parts) in {None, *ended}:
                kind, part, microbatch = queue.pop(0)
                began = max(clocks[stage], ended.get(waits_for(kind, part, microbatch, parts), 0.0))
                clocks[stage] = began + seconds(kind)
                ended["I" if kind == "B" else kind, part, microbatch] = clocks[stage]
                moved = True
        assert moved, "every pass has what it waits for"
    work = sum(seconds(kind) for order in orders for kind, _, _ in order)
    return 1 - work / (max(clocks) * len(orders))


@pytest.mark.parametrize(("schedule", "stages", "parts", "microbatches"), CASES)
def test_the_theoretical_bubble_is_that_of_torchs_schedule(orders, schedule, stages, parts, microbatches):
    orders = orders(schedule, stages, parts, microbatches)
    bubble = theoretical_bubble(schedule, stages, parts, microbatches)
    assert acted_out(orders, stages * parts) == pytest.approx(bubble)


@pytest.mark.parametrize(("schedule", "stages", "parts", "microbatches"), CASES)
def test_a_stage_holds_as_many_forward_passes_as_it_says(orders, schedule, stages, parts, microbatches):
    for stage, order in enumerate(orders(schedule, stages, parts, microbatches)):
        held = peak = 0
        for kind, _, _ in order:
            held += {"F": 1, "I": 0, "W": -1, "B": -1}[kind]
            peak = max(peak, held)
        assert peak == held_parts(schedule, stages, parts, microbatches, stage)


def test_more_parts_and_a_zero_bubble_schedule_wait_less():
    plain, interleaved = theoretical_bubble("1f1b", 4, 1, 8), theoretical_bubble("interleaved-1f1b", 4, 2, 8)
    assert plain > interleaved > theoretical_bubble("zero-bubble", 4, 1, 8) > theoretical_bubble("zero-bubble", 4, 2, 8)


@pytest.mark.parametrize("schedule", [ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble])
def test_torch_refuses_the_microbatches_that_are_refused_before_a_run(schedule):
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        stages = [PipelineStage(torch.nn.Linear(1, 1), part * 2, 4, torch.device("cpu")) for part in range(2)]
        with pytest.raises(ValueError, match="multiple of the number of rounds"):
            schedule(stages, 5, loss_fn=torch.sum)
    finally:
        dist.destroy_process_group()


def test_a_layout_knows_its_parts():
    assert Layout("pipeline", 4, 1, 1, 8, 2).num_parts == 8
