"""A loop with nanochat's habits over the plain model, behind the gate: lines of our own, as it is in no package.

Its habits: matrices of the blocks by Muon and the rest by AdamW, each shape of matrices as one stack in a compiled
update, the whole model and its loss compiled with static shapes, no garbage collection between steps. Muon multiplies
in fp32, as bf16 is many times slower on a CPU. Clipping is not its habit; it is here since all others clip.

Source: https://github.com/karpathy/nanochat (base_train.py, optim.py); K. Jordan et al., Muon, 2024.
"""

import gc

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tests.benchmarks.peer_gate import LEARNING_RATE, MAX_GRAD_NORM, Gate, some_sequences
from tests.benchmarks.plain_llama import PlainLlama

ITERATIONS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal before they are subtracted; one update for each shape."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        shapes = sorted({tuple(parameter.shape) for parameter in parameters})
        groups = [{"params": [p for p in parameters if tuple(p.shape) == shape]} for shape in shapes]
        super().__init__(groups, {"lr": 0.02, "momentum": 0.95})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            parameters = group["params"]
            gradients = torch.stack([parameter.grad for parameter in parameters])
            state = self.state[parameters[0]]
            if not state:
                state["momentum"] = torch.zeros_like(gradients)
            updates = _muon_update(gradients, state["momentum"], group["momentum"])
            rate = group["lr"] * max(1.0, gradients.shape[-2] / gradients.shape[-1]) ** 0.5
            torch._foreach_add_(parameters, list(updates.unbind()), alpha=-rate)


@torch.compile(dynamic=False, fullgraph=True)
def _muon_update(gradients: Tensor, momentum: Tensor, beta: float) -> Tensor:
    momentum.lerp_(gradients, 1 - beta)
    x = gradients.lerp(momentum, beta)
    is_tall = x.shape[-2] > x.shape[-1]
    x = x.mT if is_tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


class WithLoss(nn.Module):
    """The model and its loss as one graph."""

    def __init__(self, model: PlainLlama) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.model(ids).flatten(0, 1), targets.flatten())


def main() -> None:
    """Train until the driver has had enough."""
    gate, model, ids = Gate(), PlainLlama(), some_sequences()
    gate.check(model)
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
    is_matrix = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in is_matrix]
    adamw = torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.8, 0.95), fused=True)
    optimizers = [adamw, Muon(matrices)]
    compiled = torch.compile(WithLoss(model), dynamic=False)
    for step in range(1_000_000):
        gate.wait()
        loss = compiled(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        print(f"loss {loss.item():.4f}", flush=True)
        if step == 0:
            gc.collect()
            gc.freeze()
            gc.disable()


if __name__ == "__main__":
    main()
