"""Old checkpoints live on: against a plain implementation of Argonne 1.x that shares no code with the trainer's."""

import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from shared.errors import ConfigError, FormatError
from tests.old_argonne import OldModel, save
from tests.train_helpers import architecture, lively_model, some_ids
from train.building import make_model
from train.commands import main
from train.config import load_recipe
from train.legacy import MLP, CausalSelfAttention, LegacyModel, legacy_config
from train.legacy_checkpoint import read_legacy
from train.legacy_names import parameter_order
from train.sample import Sampling, generate

SIZES = {"vocab_size": 64, "block_size": 24, "n_layer": 3, "n_head": 4, "n_embd": 36}  # heads of 9, as 1.5 had 81


def old_model(seed=0):
    torch.manual_seed(seed)
    return OldModel(**SIZES)


def staged(state, sizes, *, only=True):
    """As distribute_model left it: blocks under the stages of so many blocks, alone or twice."""
    found = {} if only else dict(state)
    for key, value in state.items():
        if not key.startswith("blocks."):
            found[key] = value
            continue
        _, number, rest = key.split(".", 2)
        stage = next(s for s in range(len(sizes)) if int(number) < sum(sizes[: s + 1]))
        found[f"pipeline_stages.{stage}.{int(number) - sum(sizes[:stage])}.{rest}"] = value
    return found


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def imported(path, heads=4):
    found = read_legacy(path, heads)
    model = make_model(found.config)
    model.load_state_dict(found.weights, strict=not found.config.tie_word_embeddings)
    model.tie()
    return found, model.eval()


FORMS = {
    "1.0, stages alone": lambda state: staged(state, [2, 1]),
    "1.5, both": lambda state: staged(state, [2, 1], only=False),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "wrapped, compiled": lambda state: prefixed(state, "module._orig_mod."),
    "compiled, wrapped, both": lambda state: prefixed(staged(state, [1, 1, 1], only=False), "_orig_mod.module."),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_of_1_x_has_its_logits_in_every_form(form, tmp_path):
    old = old_model()
    found, model = imported(save(tmp_path / "old.pth", FORMS[form](old.state_dict()), tokens_processed=7))
    with torch.no_grad():
        ids = some_ids(2, 24)
        theirs = old(ids)
        torch.testing.assert_close(model(ids), theirs, atol=1e-5, rtol=0)
    assert theirs.std() > 0.1
    assert (found.step, found.tokens, found.num_dropped) == (100, 7, len(found.fate) - len(found.weights))


def test_the_loss_is_of_labels_that_nobody_shifts(tmp_path):
    old = old_model()
    _, model = imported(save(tmp_path / "old.pth", old.state_dict()))
    ids, targets = some_ids(2, 24), some_ids(2, 24, seed=1)
    with torch.no_grad():
        theirs = F.cross_entropy(old(ids).flatten(0, 1), targets.flatten(), reduction="sum")
        torch.testing.assert_close(model(ids, targets), theirs, atol=1e-3, rtol=1e-5)


def test_greedy_text_with_a_cache_is_that_of_the_plain_model(tmp_path):
    old = old_model()
    _, model = imported(save(tmp_path / "old.pth", old.state_dict()))
    ids = some_ids(2, 5)
    found = generate(model, ids, Sampling(max_new_tokens=19, temperature=0))
    with torch.no_grad():
        for _ in range(19):
            ids = torch.cat((ids, old(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(found, ids)


def test_half_precision_weights_are_taken_as_they_are(tmp_path):
    old = old_model().half()
    found, _ = imported(save(tmp_path / "old.pth", old.state_dict()))
    assert torch.equal(found.weights["lm_head.weight"], old.head.weight)


def test_the_state_of_adamw_goes_to_its_parameters(tmp_path):
    old = old_model()
    optimizer = torch.optim.AdamW(old.parameters())
    old(some_ids(2, 24)).square().mean().backward()
    optimizer.step()
    path = save(tmp_path / "old.pth", old.state_dict(), optimizer_state_dict=optimizer.state_dict())
    found, _ = imported(path)
    assert torch.equal(found.optimizer["lm_head.weight.exp_avg"], optimizer.state[old.head.weight]["exp_avg"])
    assert torch.equal(
        found.optimizer["blocks.2.mlp.up_proj.bias.exp_avg_sq"],
        optimizer.state[old.blocks[2].mlp.fc1.bias]["exp_avg_sq"],
    )
    positions = optimizer.state[old.position_embedding]["exp_avg"][0]
    assert torch.equal(found.optimizer["embed_positions.weight.exp_avg"], positions)
    assert len(found.optimizer) == 3 * len(list(old.parameters()))
    assert "optimizer state: that of all" in found.notes[1]
    state = optimizer.state_dict()
    del state["state"][3]
    found, _ = imported(save(tmp_path / "old.pth", old.state_dict(), optimizer_state_dict=state))
    assert found.optimizer == {}
    assert "dropped, it is of 52 parameters of 53" in found.notes[1]


@pytest.mark.parametrize(
    ("heads", "changes"),
    [
        (4, {}),
        (4, {"tie_word_embeddings": False}),
        (3, {"num_attention_heads": 3, "num_key_value_heads": 1, "head_size": 10}),  # as 24 heads of 170 in 4,096
    ],
)
def test_a_checkpoint_of_2_0_has_its_logits(heads, changes, tmp_path):
    old = lively_model(architecture(**changes))
    found, model = imported(save(tmp_path / "old.pth", prefixed(old.state_dict(), "_orig_mod.")), heads)
    assert replace(found.config, max_position_embeddings=64) == old.config
    with torch.no_grad():
        assert torch.equal(model(some_ids()), old(some_ids()))
    names = [name for name, _ in old.named_parameters()]
    assert sorted(parameter_order(2, names)) == sorted(names)


def test_what_a_checkpoint_of_2_0_does_not_tell_is_told_by_options(tmp_path):
    path = save(tmp_path / "old.pth", lively_model(architecture()).state_dict())
    sizes = ["--data.sequence-length", "16", "--data.global-batch", "4", "--training.microbatch", "1"]
    told = ["--heads", "4", *sizes, "--model.max-position-embeddings", "48", "--model.rope-theta", "500"]
    assert main(["import", str(path), str(tmp_path / "run"), *told], None) == 0
    model = load_recipe(str(tmp_path / "run" / "recipe.toml")).model
    assert (model.num_attention_heads, model.max_position_embeddings, model.rope_theta) == (4, 48, 500.0)


def test_a_sequence_may_be_longer_than_the_recipe_by_which_a_model_goes_on_knows_them(tmp_path):
    path = save(tmp_path / "old.pth", lively_model(architecture()).state_dict())
    longest = load_recipe("tiny").model.max_position_embeddings
    told = ["import", str(path), str(tmp_path / "run"), "--heads", "4", "--data.sequence-length"]
    assert main([*told, str(2 * longest)], None) == 0
    config = load_recipe(str(tmp_path / "run" / "recipe.toml"))
    assert (config.data.sequence_length, config.model.max_position_embeddings) == (2 * longest, 4096)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_key_value_heads": 2}, "num_key_value_heads 2 is found: argonne-1 is always 4"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings True is found: argonne-1 is always False"),
        ({"mlp_bias": False}, "mlp_bias False is found: argonne-1 is always True"),
        ({"rope_theta": 500.0}, "rope_theta 500.0 is found: argonne-1 is always 10000.0"),
        ({"qk_norm": True}, "qk_norm True is found: argonne-1 is always False"),
    ],
)
def test_what_no_1_x_model_is_is_refused(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        legacy_config(**SIZES, **changes)


def test_the_old_names_are_there():
    config = legacy_config(**SIZES, dropout=0.0, use_flash_attn=False)
    model = make_model(config)
    assert isinstance(model, LegacyModel)
    assert isinstance(model.blocks["0"].attn, CausalSelfAttention)
    assert isinstance(model.blocks["0"].mlp, MLP)
    assert (config.num_hidden_layers, config.max_position_embeddings, config.kv_heads) == (3, 24, 4)


def shard(state):
    return {"model_state_dict": state, "tensor_parallel": True, "world_size": 8, "rank": 3}


def two_versions(state):
    found = staged(state, [2, 1], only=False)
    return {"model_state_dict": found | {"pipeline_stages.1.0.ln1.bias": torch.ones(36)}}


def stage_missing(state):
    found = staged(state, [1, 1, 1])
    return {"model_state_dict": {key: value for key, value in found.items() if ".1.0." not in key}}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (shard, r"is the shard of rank 3 of 8 of a tensor-parallel run, which is not a model"),
        (lambda state: {"model": state, "tensor_parallel_shards": [{}]}, "holds the shards of a tensor-parallel run"),
        (lambda state: {"epoch": 1}, "has no model_state_dict or model: it is not a checkpoint"),
        (lambda state: {"model": {"a": torch.zeros(1)}}, "has neither token_embedding"),
        (lambda state: {"model": state | {"blocks.0.attn.extra": torch.zeros(1)}}, r"'blocks\.0\.attn\.extra' is no"),
        (two_versions, r"pipeline_stages\.1\.0\.ln1\.bias is not blocks\.2\.ln1\.bias"),
        (stage_missing, r"pipeline_stages\.2\.0 cannot be block 1"),
        (lambda state: {"model": state, "global_step": -1}, r"says global_step -1: a count is wanted"),
        (
            lambda state: {"model": state, "loss": Sampling()},
            r"holds more than data \(train\.sam.*Sampling\): it is not l",
        ),
        (
            lambda state: {"model": state | {"module.head.weight": torch.zeros(1)}},
            r"are both lm_head\.weight, and differ",
        ),
        (lambda state: list(state.values()), r"old\.pth holds list, not a checkpoint"),
    ],
)
def test_what_is_no_model_is_refused(document, problem, tmp_path):
    torch.save(document(old_model().state_dict()), tmp_path / "old.pth")
    with pytest.raises(FormatError, match=problem):
        read_legacy(tmp_path / "old.pth", 4)


@pytest.mark.parametrize(
    "raw", [b"", b"hello", b"PAR1\x15\x04", pickle.dumps({"model": print}), b"PK\x03\x04" + bytes(60)]
)
def test_what_is_no_checkpoint_is_refused_without_advice_to_run_it(raw, tmp_path):
    path = tmp_path / "old.pth"
    path.write_bytes(raw)
    with pytest.raises(FormatError) as raised:
        read_legacy(path, 4)
    assert str(raised.value) == f"{path} is damaged, or no checkpoint: it is not loaded"
    with pytest.raises(FormatError, match=r"gone\.pth not found: name a checkpoint file"):
        read_legacy(tmp_path / "gone.pth", 4)
    with pytest.raises(FormatError, match="cannot be read: Is a directory"):
        read_legacy(tmp_path, 4)


def test_only_the_number_of_heads_is_asked_for(tmp_path):
    path = save(tmp_path / "old.pth", old_model().state_dict())
    with pytest.raises(ConfigError, match="heads is not in the checkpoint: give --heads"):
        read_legacy(path)
    with pytest.raises(ConfigError, match="not a multiple of num_attention_heads 5"):
        read_legacy(path, 5)


def test_an_unmarked_shard_is_no_model_of_narrower_heads(tmp_path):
    whole = lively_model(architecture()).state_dict()
    cut = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1, "gate_proj": 0, "up_proj": 0, "down_proj": 1}
    half = {
        name: tensor.chunk(2, cut[name.split(".")[-2]])[0] if name.split(".")[-2] in cut else tensor
        for name, tensor in whole.items()
    }
    with pytest.raises(ConfigError, match=r"queries of 16 and keys of 8 .* it is a part of a model, which cannot be"):
        read_legacy(save(tmp_path / "old.pth", half), 4)
