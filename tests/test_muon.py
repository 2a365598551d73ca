"""Muon: its arithmetic, and that it is the same whatever ranks hold which rows of a matrix."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tests.helpers import on_ranks
from tests.muon_worker import MESHES, SHAPES, Blocks, drawn, give_gradients, trained
from tests.test_distributed import Layout, carry_out, job, recipe
from tests.train_helpers import group_of_one
from train.config import OptimizerConfig
from train.dealing import rows_of, shard_group
from train.muon import COEFFICIENTS, ITERATIONS, orthogonalize, update_scale
from train.optim import build_optimizer
from train.records import read_metrics
from train.tensors import training_tensors


def matrices(shape, count=3):
    return torch.stack([drawn("a", torch.Size(shape), number) for number in range(count)])


# arithmetic


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalizing_keeps_the_singular_vectors_and_evens_the_values(shape):
    given = matrices(shape)
    left, values, right = torch.linalg.svd(given.double(), full_matrices=False)
    values /= values.square().sum(1, keepdim=True).sqrt()
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(orthogonalize(given).double(), left * values[:, None] @ right, rtol=0, atol=2e-5)
    assert values[:, : min(shape) // 2].min() > 0.6
    assert values.max() < 1.3


def test_a_matrix_of_zeros_stays_one():
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


@pytest.mark.parametrize("shape", SHAPES)
def test_an_update_is_as_large_as_one_of_adamw(shape):
    update = orthogonalize(matrices(shape)) * update_scale(torch.Size(shape))
    assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


def test_a_step_is_that_of_torchs_muon_as_far_as_that_one_computes():
    ours, theirs = Blocks(), Blocks()
    theirs.load_state_dict(ours.state_dict())
    one = build_optimizer(OptimizerConfig("muon", learning_rate=0.1, weight_decay=0.3, momentum=0.8), ours)
    two = torch.optim.Muon(
        theirs.blocks.parameters(), lr=0.1, weight_decay=0.3, momentum=0.8, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(4):
        for model in (ours, theirs):
            give_gradients(model, step)
        one.step()
        two.step()
    for mine, other in zip(ours.blocks.parameters(), theirs.blocks.parameters(), strict=True):
        moved = (mine - other).norm() / mine.norm()
        assert moved < 0.01  # it multiplies in bf16, of 8 bits


def test_the_norms_are_adamws():
    models = {name: Blocks() for name in ("muon", "adamw")}
    for name, model in models.items():
        optimizer = build_optimizer(OptimizerConfig(name, learning_rate=0.1), model)
        give_gradients(model, 0)
        optimizer.step()
    assert torch.equal(models["muon"].norm, models["adamw"].norm)
    assert not torch.equal(models["muon"].blocks[0].weight, models["adamw"].blocks[0].weight)


def test_a_matrix_without_a_gradient_is_our_bug():
    with pytest.raises(AssertionError, match=r"^every matrix of a block is used in its forward pass"):
        build_optimizer(OptimizerConfig("muon"), Blocks()).step()


def test_a_matrix_has_its_momentum_for_a_state():
    model = Blocks()
    give_gradients(model, 0)
    optimizer = build_optimizer(OptimizerConfig("muon"), model)
    optimizer.step()
    names = training_tensors(model, optimizer).keys()
    assert {name for name in names if name.startswith("optimizer.blocks.1.")} == {"optimizer.blocks.1.weight.momentum"}


def test_a_step_has_no_closure():
    with pytest.raises(AssertionError, match=r"^gradients are there already$"):
        build_optimizer(OptimizerConfig("muon"), Blocks()).step(lambda: 0.0)


# spread over ranks


def test_matrices_that_are_spread_otherwise_are_our_bug():
    with group_of_one():
        mesh = init_device_mesh("cpu", (1,))
        rows, columns = (distribute_tensor(torch.zeros(2, 2), mesh, [Shard(axis)]) for axis in (0, 1))
        assert shard_group([rows, rows]) is shard_group([]) is None
        with pytest.raises(AssertionError, match=r"^rows are spread, not "):
            shard_group([columns])
        with pytest.raises(AssertionError, match=r"^matrices are spread alike, not as "):
            shard_group([rows, torch.zeros(2, 2)])


@pytest.mark.parametrize(("num_rows", "num_ranks"), [(6, 3), (7, 3), (2, 4), (9, 4), (1, 1)])
def test_rows_are_spread_as_torch_spreads_them(num_rows, num_ranks):
    chunks = [len(chunk) for chunk in torch.arange(num_rows).chunk(num_ranks)]
    assert rows_of(num_rows, num_ranks) == chunks + [0] * (num_ranks - len(chunks))


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """What four real processes make of the same gradients, for each mesh."""
    directory = tmp_path_factory.mktemp("spread")
    on_ranks(4, "tests.muon_worker", directory)
    return {name: torch.load(directory / f"{name}.pt") for name in MESHES}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_the_update_does_not_depend_on_who_holds_which_rows(mesh, spread):
    expected = trained()
    assert spread[mesh].keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(spread[mesh][name], tensor, rtol=0, atol=1e-5)


RUNS = [Layout("one", 1, "fsdp"), Layout("sharded", 2, "fsdp"), Layout("pipeline", 2, "pipeline")]


@pytest.mark.slow
def test_a_run_with_muon_is_the_same_in_every_layout_and_continues_in_another(small_tokens, tmp_path):
    config = recipe(tied=True)
    config = replace(config, optimizer=replace(config.optimizer, name="muon"))
    for size in (1, 2):
        jobs = [job(config, run, small_tokens, tmp_path / run.name) for run in RUNS if run.num_processes == size]
        carry_out(size, jobs, tmp_path)
    continued = []
    for before, after in (("sharded", "pipeline"), ("pipeline", "sharded")):
        run = shutil.copytree(tmp_path / before, tmp_path / f"{before}-{after}")
        shutil.rmtree(run / "checkpoints" / "step-00000010")
        continued.append(job(config, next(r for r in RUNS if r.name == after), small_tokens, run))
    carry_out(2, continued, tmp_path)
    for key in ("loss", "grad_norm"):
        expected = [record[key] for record in read_metrics(tmp_path / "one")]
        for name in ("sharded", "pipeline", "sharded-pipeline", "pipeline-sharded"):
            assert [record[key] for record in read_metrics(tmp_path / name)] == pytest.approx(expected, rel=1e-5)
