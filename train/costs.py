"""What a block, the embedding and the head take on this device, measured; and the split of the layers by it."""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from train.building import build_model
from train.collective import gather, rank
from train.config import RunConfig
from train.layout import Layout
from train.memory import most_layers
from train.model import ArgonneModel, Part
from train.split import Costs, computed_costs, split_layers
from train.strategy import precision_context

TRIES = 3


def choose_split(config: RunConfig, layout: Layout, device: torch.device) -> tuple[list[range], Costs]:
    """The layers of each part of a pipeline, and the costs behind it, the same on every rank; all must call it."""
    if config.pipeline.split == "measured" and layout.num_parts > 1:
        costs = gather(measured_costs(config, device) if rank() == 0 else None)[0]
        assert costs is not None, "rank 0 has measured"
    else:
        costs = computed_costs(config.model, config.data.sequence_length)
    return split_layers(config.model.num_hidden_layers, layout, costs, _room(config, layout, device)), costs


def _room(config: RunConfig, layout: Layout, device: torch.device) -> list[int] | None:
    """Layers that each stage has memory for, on the smallest device; None where ranks share a machine's memory."""
    if device.type != "cuda":
        return None
    return most_layers(config, layout, min(gather(torch.cuda.get_device_properties(device).total_memory)))


def measured_costs(config: RunConfig, device: torch.device) -> Costs:
    """Seconds of the forward and backward pass of one microbatch."""
    size = config.microbatch, config.data.sequence_length
    ids = torch.randint(0, config.model.vocab, size, device=device)
    hidden = torch.randn(*size, config.model.hidden_size, device=device, requires_grad=True)

    def seconds(part: Part, *inputs: Tensor) -> float:
        return _least_seconds(partial(_pass, _model(config, part, device), config, device, *inputs), device)

    return Costs(
        block=seconds(Part(range(1), is_first=False, is_last=False), hidden),
        embedding=seconds(Part(range(0), is_first=True, is_last=False), ids),
        head=seconds(Part(range(0), is_first=False, is_last=True), hidden, ids),
    )


def _model(config: RunConfig, part: Part, device: torch.device) -> ArgonneModel:
    """A part with any weights."""
    model = build_model(config, part)
    model.to_empty(device=device)
    model.tie()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.02, 0.02)
    return model


def _pass(model: ArgonneModel, config: RunConfig, device: torch.device, *inputs: Tensor) -> None:
    with precision_context(config, device):
        output = model(*inputs)
    torch.autograd.backward(output, torch.ones_like(output))


def _least_seconds(work: Callable[[], None], device: torch.device) -> float:
    """The shortest of a few tries, after one that warms up."""
    seconds = []
    for _ in range(TRIES + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
