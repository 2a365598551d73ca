import pytest
import torch

from tests.train_helpers import recipe, some_ids
from train.building import build_model
from train.counting import Kept
from train.layout import block_parameters, lay_out
from train.memory import (
    activation_bytes,
    block_activation_bytes,
    head_activation_bytes,
    most_layers,
    rotary_bytes,
    saved_bytes,
    state_bytes,
)
from train.model import ArgonneModel, Part
from train.optim import build_optimizer, create_state
from train.strategy import precision_context

CPU = torch.device("cpu")
WIDE = {"model__hidden_size": 64, "model__intermediate_size": 160, "data__sequence_length": 48}


# activations


def kept_bytes(config, part):
    """What autograd keeps of a forward pass of a part, the copies that autocast makes of weights aside."""
    model = build_model(config, part)
    model.to_empty(device=CPU)
    model.initialize(0)
    size = config.training.microbatch, config.data.sequence_length
    hidden = torch.randn(*size, config.model.hidden_size, requires_grad=True)
    ids = some_ids(*size)
    with Kept() as kept, precision_context(config, CPU):
        output = model(ids if part.is_first else hidden, ids)
    assert output.requires_grad
    return kept.now


@pytest.mark.parametrize(("precision", "flash"), [("fp32", True), ("fp32", False), ("bf16", True)])
@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("head_size", [None, 24])
def test_autograd_keeps_of_a_block_what_the_formula_says(precision, recompute, flash, head_size):
    config = recipe(
        **WIDE,
        model__head_size=head_size,
        training__precision=precision,
        training__activation_checkpointing=recompute,
        model__use_flash_attention=flash,
    )
    formula = block_activation_bytes(config, recompute)
    if recompute == "none":
        formula += rotary_bytes(config) + 2 * block_parameters(config.model) * (precision == "bf16")
    measured = kept_bytes(config, Part(range(1), is_first=False, is_last=False))
    assert measured == pytest.approx(formula, rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_autograd_keeps_of_the_head_what_the_formula_says(precision):
    config = recipe(**WIDE, training__precision=precision, model__vocab_size=640)
    measured = kept_bytes(config, Part(range(0), is_first=False, is_last=True)) - rotary_bytes(config)
    assert measured == pytest.approx(head_activation_bytes(config), rel=0.1)


def test_the_first_stage_holds_the_activations_of_the_most_microbatches():
    changes = {"strategy": "pipeline", "pipeline__stages": 4, "model__num_hidden_layers": 4, "model__vocab_size": 1}
    config = recipe(**changes, data__global_batch=8, data__validation_chunks=0, training__microbatch=1)
    sizes = activation_bytes(config, lay_out(config, 4), [range(n, n + 1) for n in range(4)])
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] == 3 * (block_activation_bytes(config, "none") + rotary_bytes(config))


def test_a_stage_has_room_for_the_layers_that_its_memory_holds():
    changes = {"strategy": "pipeline", "model__num_hidden_layers": 8, "training__microbatch": 1}
    config = recipe(**changes)
    layout = lay_out(config, 2)
    split = [range(3), range(3, 8)]
    held = activation_bytes(config, layout, split)
    needed = max(state_bytes(config, layout, split, stage) + held[stage] for stage in range(2))
    room = most_layers(config, layout, needed)
    assert room[0] >= 3
    assert room[1] >= 5
    assert sum(most_layers(config, layout, 2 * needed)) > sum(room)
    assert most_layers(config, layout, 1) == [0, 0]


def test_recomputing_blocks_holds_less():
    sizes = [block_activation_bytes(recipe(**WIDE), recompute) for recompute in ("full", "selective", "none")]
    assert sizes[2] > 1.3 * sizes[1] > 1.3 * 5 * sizes[0]


def test_a_longer_stride_holds_more():
    def held(stride):
        changes = {"training__activation_checkpointing": "full", "training__checkpoint_stride": stride}
        config = recipe(**changes, model__num_hidden_layers=4)
        return activation_bytes(config, lay_out(config, 1), [range(4)])[0]

    assert held(1) < held(2) < held(4)
    difference = block_activation_bytes(recipe(), "none") - block_activation_bytes(recipe(), "full")
    assert held(2) - held(1) == 2 * difference


# a checkpoint


@pytest.mark.parametrize("changes", [{}, {"optimizer__name": "muon"}, {"model__tie_word_embeddings": False}], ids=str)
def test_a_checkpoint_is_as_large_as_weights_and_optimizer_state(changes):
    config = recipe(**changes)
    model = ArgonneModel(config.model)
    optimizer = build_optimizer(config.optimizer, model)
    create_state(optimizer)
    state = [value for values in optimizer.state.values() for value in values.values() if value.ndim > 0]
    assert saved_bytes(config) == sum(tensor.nbytes for tensor in (*model.parameters(), *state))
