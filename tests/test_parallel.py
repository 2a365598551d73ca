"""What the options of pipelines and sharding change, and that they do not change what is learned."""

import json

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

from tests.helpers import on_ranks
from tests.train_helpers import group_of_one, lively_model, plain, recipe, some_ids
from train.continuing import CHANGEABLE
from train.drain import Drain
from train.dry_run import drive
from train.fsdp import FullyShardedStrategy, sharded_modules
from train.grid import Grid
from train.layout import lay_out
from train.model import Part
from train.stage import Stage, Stopwatch
from train.strategy import build_strategy

CPU = torch.device("cpu")
BASE = {
    "model__num_hidden_layers": 4,
    "data__global_batch": 8,
    "data__validation_chunks": 0,
    "training__microbatch": 1,
    "pipeline__split": "computed",
}
PIPELINE = {**BASE, "strategy": "pipeline"}
CASES = {
    "fsdp": BASE,
    "pipeline": PIPELINE,
    "interleaved": {**PIPELINE, "pipeline__schedule": "interleaved-1f1b"},
    "zero-bubble": {**PIPELINE, "pipeline__schedule": "zero-bubble"},
    "measured": {**PIPELINE, "pipeline__split": "measured"},
    "recomputed": {**PIPELINE, "pipeline__schedule": "zero-bubble", "training__activation_checkpointing": "full"},
    "bf16": {**PIPELINE, "pipeline__schedule": "zero-bubble", "training__precision": "bf16"},
    "bf16-fsdp": {**BASE, "training__precision": "bf16"},
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each case gives on two real processes."""
    path = tmp_path_factory.mktemp("parallel") / "jobs.json"
    path.write_text(json.dumps([plain(recipe(**changes)) for changes in CASES.values()]))
    on_ranks(2, "tests.parallel_worker", path)
    return dict(zip(CASES, json.loads(path.with_suffix(".results").read_text()), strict=True))


def column(outcome, key):
    return [step.get(key) for step in outcome["steps"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if "bf16" not in name])
def test_no_option_changes_what_is_learned(outcomes, name):
    for key in ("loss", "norm"):
        assert column(outcomes[name], key) == pytest.approx(column(outcomes["fsdp"], key), rel=1e-5)
    assert column(outcomes[name], "validation") == pytest.approx(column(outcomes[name], "loss"), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", "bf16-fsdp"])
def test_bf16_learns_the_same_as_fp32_within_its_precision(outcomes, name):
    losses = column(outcomes[name], "loss")
    assert losses == pytest.approx(column(outcomes["fsdp"], "loss"), rel=2e-3)
    assert losses != column(outcomes["fsdp"], "loss")


@pytest.mark.slow
def test_a_pipeline_says_how_long_it_waits_and_how_long_it_should(outcomes):
    for name, theory in (("pipeline", 1 / 9), ("interleaved", 1 / 17), ("zero-bubble", 1 / 25)):
        assert column(outcomes[name], "bubble_theoretical") == pytest.approx([theory] * 2)
        assert all(0 < waited < 1 for waited in column(outcomes[name], "bubble"))
    assert column(outcomes["fsdp"], "bubble") == [None] * 2


@pytest.mark.slow
def test_the_split_and_what_it_is_balanced_by_are_told(outcomes):
    computed, measured = outcomes["pipeline"], outcomes["measured"]
    assert computed["layers"] == [[0, 2], [2, 4]]
    assert computed["head"] == 64 * 32
    assert 0 < measured["block"] < 10  # seconds
    assert [layers[1] - layers[0] > 0 for layers in measured["layers"]] == [True, True]
    assert measured["head"] != computed["head"]


def test_how_ranks_share_the_work_may_change_when_a_run_is_continued():
    assert {"strategy", "pipeline", "fsdp"} <= CHANGEABLE


# a loss whose gradients are made with it


class EagerGradients(torch.autograd.Function):
    """Stands for a fused head and loss: the forward pass makes both gradients, the backward pass scales them."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        with torch.enable_grad():
            leaves = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            loss = torch.nn.functional.cross_entropy((leaves[0] @ leaves[1].T).flatten(0, 1), targets.flatten())
            ctx.save_for_backward(*torch.autograd.grad(loss, leaves))
        return loss.detach()

    @staticmethod
    def backward(ctx, scale: Tensor):
        of_hidden, of_weight = ctx.saved_tensors
        return of_hidden * scale, of_weight * scale, None


def test_a_loss_that_makes_its_gradients_in_the_forward_pass_can_be_split_by_a_zero_bubble_schedule():
    weight = torch.nn.Parameter(torch.randn(64, 32, generator=torch.Generator().manual_seed(1)))
    model = lively_model(recipe().model).train()
    middle, ids = model.blocks["1"], some_ids(2, 12)
    hidden = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(2))
    table = (torch.ones(12, 8), torch.zeros(12, 8))
    parameters = [*middle.parameters(), weight]

    def loss(leaf):
        return EagerGradients.apply(middle(leaf, table), weight, ids) / 3  # a scale that must act once

    expected = torch.autograd.grad(loss(hidden.requires_grad_()), [hidden, *parameters])
    leaf = hidden.detach().requires_grad_()
    of_input, groups = stage_backward_input((loss(leaf),), None, [leaf, ids], iter(parameters))
    assert all(parameter.grad is None for parameter in parameters)
    stage_backward_weight(iter(parameters), groups)
    for found, wanted in zip((of_input[0], *(p.grad for p in parameters)), expected, strict=True):
        torch.testing.assert_close(found, wanted)


# the sharded model


def sharded(**changes):
    config = recipe(**{**BASE, **changes})
    layout = lay_out(config, 1)
    return FullyShardedStrategy(config, layout, CPU, Grid(layout, CPU)).model


@pytest.mark.parametrize(("ahead", "names"), [(0, []), (1, ["1"]), (2, ["1", "2"])])
def test_blocks_are_gathered_ahead_of_their_use(ahead, names):
    with group_of_one():
        model = sharded(fsdp__prefetch=ahead)
        first, last = (model.blocks[name]._get_fsdp_state() for name in ("0", "3"))
        by_state = {block._get_fsdp_state(): name for name, block in model.blocks.items()}
        assert [by_state[state] for state in first._states_to_forward_prefetch] == names
        backward = [by_state[state] for state in last._states_to_backward_prefetch]
        assert backward == [str(2 - number) for number in range(ahead)]


def test_every_block_and_the_rest_is_gathered_on_its_own():
    with group_of_one():
        model = sharded()
        assert isinstance(model, FSDPModule)
        assert len(list(sharded_modules(model))) == 1 + 4


def test_one_rank_shards_nothing():
    with group_of_one():
        config = recipe(**BASE)
        model = build_strategy(config, lay_out(config, 1), CPU).model
        assert list(sharded_modules(model)) == []
        assert list(dict(model.named_parameters())) == list(dict(sharded().named_parameters()))


# a stage


def test_a_stage_holds_buffers_for_what_is_under_way_not_for_every_microbatch():
    """Driven on a rank that does not exist: what was received for 64 microbatches is there for two at most."""
    config = recipe(**{**PIPELINE, "data__global_batch": 64})
    layout = lay_out(config, 2)
    seen = drive(config, layout, 1)
    hidden = 16 * 32 * 4
    assert seen.traffic["send"] == 64 * hidden
    assert seen.activation_bytes < 64 * hidden


def test_a_buffer_is_made_when_something_is_received_and_given_up_when_it_was_used():
    config = recipe(**PIPELINE)
    with group_of_one():
        meta = torch.empty(1, 16, 32, device="meta", requires_grad=True)
        part = lively_model(config.model)
        part.part = Part(range(2), is_first=False, is_last=False)
        stage = Stage(Stopwatch(CPU), Drain(is_possible=True), part, 1, 3, CPU, input_args=meta, output_args=meta)
        stage.stage_index_to_group_rank = dict.fromkeys(range(3), 0)
        stage._stage_meta.inputs, stage._stage_meta.outputs = stage._user_meta.inputs, stage._user_meta.outputs
        stage._setup_forward_recv_info(4, True)
        infos = [stage.args_recv_info[number][0] for number in range(4)]
        assert all(info.buffer.is_meta for info in infos)
        stage.get_fwd_recv_ops(2)
        assert [info.buffer.is_meta for info in infos] == [True, True, False, True]
        infos[2].buffer.zero_()
        stage.has_backward = True
        stage.forward_one_chunk(2, ())
        assert infos[2].buffer is None
        assert stage.stopwatch.seconds() > 0
        assert stage.stopwatch.seconds() == 0
