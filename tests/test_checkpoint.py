import json
import re
import shutil

import pytest
import torch

from shared.cursor import Cursor
from shared.errors import FormatError
from shared.storage import read_sealed, sha256_file, write_sealed
from tests.train_helpers import architecture, plain, recipe, some_ids
from train.checkpoint import Checkpoints, Progress
from train.checkpoint_directory import MANIFEST_NAME, newest, newest_step
from train.config import OptimizerConfig
from train.loss import token_loss
from train.model import ArgonneModel
from train.optim import build_optimizer
from train.tensors import load_tensors, training_tensors

pytestmark = pytest.mark.usefixtures("process_group")

IDENTITY = {
    "recipe": plain(recipe(training__seed=11)),
    "dataset": "d" * 64,
    "packing": None,
    "tokenizer": "e" * 64,
}


def trained(steps=2, seed=0, optimizer_name="adamw", **changes):
    """A model and its optimizer after a few steps."""
    model = ArgonneModel(architecture(**changes))
    model.initialize(seed)
    optimizer = build_optimizer(OptimizerConfig(optimizer_name, learning_rate=1e-2), model)
    for step in range(steps):
        one_step(model, optimizer, step)
    return model, optimizer


def one_step(model, optimizer, step):
    token_loss(model(some_ids(seed=step)), some_ids(seed=step + 1)).backward()
    optimizer.step()
    optimizer.zero_grad()


def progress_at(step):
    return Progress(step, Cursor(1, 2, 3 + step), 100 * step, f"digest of {step}")


def copied(model, optimizer):
    return {name: value.clone() for name, value in training_tensors(model, optimizer).items()}


def saved(directory, *steps, keep=9, identity=IDENTITY, trained_parts=None):
    checkpoints = Checkpoints(directory, keep, identity)
    model, optimizer = trained_parts or trained()
    for step in steps:
        checkpoints.save(model, optimizer, progress_at(step))
    return checkpoints


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def tensor_file(path):
    return next(path.glob("*.distcp"))


# there and back


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_gives_back_every_tensor_bit_for_bit(tmp_path, tied):
    parts = trained(tie_word_embeddings=tied)
    checkpoints = saved(tmp_path, 2, trained_parts=parts)
    other = trained(steps=0, seed=9, tie_word_embeddings=tied)
    progress = checkpoints.load(tmp_path / "step-00000002", *other)
    assert progress == progress_at(2)
    before, after = copied(*parts), copied(*other)
    assert before.keys() == after.keys()
    assert len(before) == 4 * len(list(parts[0].parameters()))  # a weight, its step and two moments
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_loaded_run_goes_on_as_if_nothing_had_happened(tmp_path, name):
    straight = trained(steps=2, optimizer_name=name)
    saved(tmp_path, 2, trained_parts=straight)
    other = trained(steps=0, seed=9, optimizer_name=name)
    Checkpoints(tmp_path, 1, IDENTITY).load(tmp_path / "step-00000002", *other)
    for model, optimizer in (straight, other):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3  # of the schedule, not of the checkpoint
        one_step(model, optimizer, 5)
    assert all(
        torch.equal(one, two) for one, two in zip(copied(*straight).values(), copied(*other).values(), strict=True)
    )


def test_tensors_are_named_by_parameter(tmp_path):
    names_of_one = {name for name in copied(*trained()) if "blocks.1.attn.q_proj" in name}
    optimizer = {f"optimizer.blocks.1.attn.q_proj.weight.{key}" for key in ("step", "exp_avg", "exp_avg_sq")}
    assert names_of_one == {"model.blocks.1.attn.q_proj.weight"} | optimizer


def test_a_checkpoint_of_another_optimizer_is_not_loaded(tmp_path):
    saved(tmp_path, 2)
    message = r"step-00000002: optimizer.blocks.0.attn.k_proj.weight.exp_avg is .*, the model wants none of it: the ch"
    with pytest.raises(FormatError, match=message):
        Checkpoints(tmp_path, 1, IDENTITY).load(tmp_path / "step-00000002", *trained(steps=0, optimizer_name="muon"))


def test_the_newest_step_is_that_of_a_committed_checkpoint(tmp_path):
    assert newest_step(tmp_path / "none") == 0
    saved(tmp_path, 2, 7)
    (tmp_path / "step-00000009").mkdir()
    assert newest_step(tmp_path) == 7


def test_a_manifest_holds_all_that_a_run_needs_to_continue(tmp_path):
    saved(tmp_path, 7)
    path = tmp_path / "step-00000007"
    manifest = read_sealed(path / MANIFEST_NAME)
    assert (manifest["format"], manifest["version"]) == ("argonne-checkpoint", 1)
    assert manifest["cursor"] == {"epoch": 1, "shard": 2, "offset": 10}
    assert (manifest["step"], manifest["tokens"], manifest["data_digest"]) == (7, 700, "digest of 7")
    assert manifest["rng"] == {"seed": 11, "step": 7}
    assert {name: manifest[name] for name in IDENTITY} == json.loads(json.dumps(IDENTITY))
    assert manifest["tensors"]["model.norm.weight"] == ["float32", [32]]
    on_disk = {file.name: [file.stat().st_size, sha256_file(file)] for file in path.iterdir()}
    del on_disk[MANIFEST_NAME]
    assert manifest["files"] == on_disk


def test_saving_a_step_again_replaces_it(tmp_path):
    checkpoints = saved(tmp_path, 3)
    model, optimizer = trained(steps=4)
    checkpoints.save(model, optimizer, progress_at(3))
    other = trained(steps=0)
    checkpoints.load(tmp_path / "step-00000003", *other)
    assert torch.equal(other[0].norm.weight, model.norm.weight)


# which one is used


def truncate(path):
    file = tensor_file(path)
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(path):
    file = tensor_file(path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def edit_the_manifest(path):
    file = path / MANIFEST_NAME
    file.write_text(file.read_text().replace('"step": 8', '"step": 9'))


def write_another_version(path):
    write_sealed(path / MANIFEST_NAME, {**read_sealed(path / MANIFEST_NAME), "version": 2})


DAMAGES = [
    (lambda path: (path / MANIFEST_NAME).unlink(), r"MANIFEST.json is missing$"),
    (truncate, r"\.distcp does not match its checksum$"),
    (flip_a_bit, r"\.distcp does not match its checksum$"),
    (lambda path: tensor_file(path).unlink(), r"\.distcp is missing$"),
    (lambda path: (path / ".metadata").unlink(), r"\.metadata is missing$"),
    (edit_the_manifest, r"MANIFEST.json does not match its own checksum"),
    (lambda path: (path / MANIFEST_NAME).write_text("{"), r"MANIFEST.json is not valid JSON"),
    (write_another_version, r"it is argonne-checkpoint version 2, not argonne-checkpoint version 1$"),
]


@pytest.mark.parametrize(("damage", "told"), DAMAGES, ids=[told for _, told in DAMAGES])
def test_a_damaged_checkpoint_is_not_used_and_the_reason_is_told(tmp_path, damage, told):
    saved(tmp_path, 4, 8)
    damage(tmp_path / "step-00000008")
    path, problems = newest(tmp_path)
    assert path == tmp_path / "step-00000004"
    assert list(problems) == [tmp_path / "step-00000008"]
    [problem] = problems.values()
    assert problem.startswith(f"{tmp_path / 'step-00000008'} is not used: ")
    assert re.search(told, problem)


def test_the_newest_of_whole_checkpoints_is_that_of_the_last_step(tmp_path):
    assert newest(saved(tmp_path, 9, 10, 2).directory) == (tmp_path / "step-00000010", {})


def test_steps_are_compared_as_numbers(tmp_path):
    assert newest(saved(tmp_path, 99_999_999, 100_000_000).directory)[0] == tmp_path / "step-100000000"


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert newest(tmp_path / "none") == (None, {})


def test_other_directories_are_no_checkpoints(tmp_path):
    (tmp_path / "step-best").mkdir()
    (tmp_path / "step-1").mkdir()
    assert newest(saved(tmp_path, 5).directory) == (tmp_path / "step-00000005", {})


# how many are kept


@pytest.mark.parametrize(("keep", "kept"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_the_newest_checkpoints_are_kept(tmp_path, keep, kept):
    saved(tmp_path, 1, 2, 3, 4, keep=keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in kept]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newer_checkpoint_does_not_cost_the_one_just_saved(tmp_path, keep):
    checkpoints = saved(tmp_path, 4, 8, keep=keep)
    flip_a_bit(tmp_path / "step-00000008")
    checkpoints.save(*trained(), progress_at(6))
    assert newest(tmp_path)[0] == tmp_path / "step-00000006"


def test_a_directory_without_a_manifest_is_not_counted(tmp_path):
    checkpoints = saved(tmp_path, 1, 2, keep=2)
    (tmp_path / "step-00000002" / MANIFEST_NAME).unlink()
    checkpoints.save(*trained(), progress_at(3))
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]


# what is refused


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weight", "moment"])
def test_numbers_that_are_not_finite_are_not_saved_and_older_checkpoints_stay(tmp_path, value, where):
    checkpoints = saved(tmp_path, 1, 2, keep=2)
    model, optimizer = trained()
    broken = model.norm.weight.data if where == "weight" else optimizer.state[model.norm.weight]["exp_avg_sq"]
    broken[3] = value
    with pytest.raises(FormatError, match=r"^step 3 has weights or optimizer state that are not finite: not saved$"):
        checkpoints.save(model, optimizer, progress_at(3))
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert newest(tmp_path) == (tmp_path / "step-00000002", {})


@pytest.mark.parametrize(
    ("name", "was"), [("dataset", "dddddddddddd"), ("packing", "None"), ("tokenizer", "eeeeeeeeeeee")]
)
def test_a_checkpoint_of_other_data_is_refused_with_both(tmp_path, name, was):
    saved(tmp_path, 1)
    other = Checkpoints(tmp_path, 1, {**IDENTITY, name: "f" * 64})
    model, optimizer = trained(steps=0)
    before = [value.clone() for value in model.parameters()]
    message = f"step-00000001 was trained with {name} {was}, this run has ffffffffffff: continue with the same one, or"
    with pytest.raises(FormatError, match=message):
        other.load(tmp_path / "step-00000001", model, optimizer)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))


def test_a_checkpoint_from_before_there_were_packings_continues_the_plain_stream(tmp_path):
    parts = trained()
    saved(tmp_path, 2, trained_parts=parts, identity={name: IDENTITY[name] for name in IDENTITY if name != "packing"})
    model, optimizer = trained(steps=0)
    assert Checkpoints(tmp_path, 1, IDENTITY).load(tmp_path / "step-00000002", model, optimizer) == progress_at(2)


@pytest.mark.parametrize(("was", "is_now"), [("bfloat16", "float32"), ("float32", "bfloat16")])
@pytest.mark.parametrize("where", ["weight", "moment"])
def test_numbers_are_never_converted_by_a_load(tmp_path, where, was, is_now):
    def parts(dtype):
        model, optimizer = trained()
        moment = optimizer.state[model.norm.weight]
        if where == "weight":
            model.norm.weight.data = model.norm.weight.data.to(getattr(torch, dtype))
        else:
            moment["exp_avg"] = moment["exp_avg"].to(getattr(torch, dtype))
        return model, optimizer

    saved(tmp_path, 1, trained_parts=parts(was))
    tensors, manifest = training_tensors(*parts(is_now)), read_sealed(tmp_path / "step-00000001" / MANIFEST_NAME)
    message = rf"norm.weight\S* is \['{was}', \[32\]\], the model wants \['{is_now}', \[32\]\]"
    with pytest.raises(FormatError, match=message):
        load_tensors(tmp_path / "step-00000001", tensors, manifest)


@pytest.mark.parametrize("name", ["model.norm.weight", "optimizer.norm.weight.exp_avg"])
def test_a_tensor_too_many_or_too_few_is_refused(tmp_path, name):
    saved(tmp_path, 1)
    path, tensors = tmp_path / "step-00000001", copied(*trained())
    manifest = read_sealed(path / MANIFEST_NAME)
    without = {key: value for key, value in tensors.items() if key != name}
    with pytest.raises(FormatError, match=rf"{name} is \['float32', \[32\]\], the model wants none of it: the checkp"):
        load_tensors(path, without, manifest)
    with pytest.raises(FormatError, match=rf"{name}.more is absent, the model wants \['float32', \[1\]\]: the checkp"):
        load_tensors(path, {**tensors, f"{name}.more": torch.zeros(1)}, manifest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"intermediate_size": 64},
            r"down_proj.weight is \['float32', \[32, 48\]\], the model wants \['float32', \[32, 64\]\]",
        ),
        ({"num_hidden_layers": 3}, r"blocks.2.attn.k_proj.weight is absent, the model wants \['float32', \[16, 32\]\]"),
        (
            {"num_hidden_layers": 1},
            r"1.attn.k_proj.weight is \['float32', \[16, 32\]\], the model wants none of it",
        ),
        ({"tie_word_embeddings": False}, r"lm_head.weight is absent, the model wants \['float32', \[64, 32\]\]"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused_with_both(tmp_path, changes, message):
    checkpoints = saved(tmp_path, 1)
    with pytest.raises(FormatError, match=f"{message}.*: the checkpoint is of another architecture$"):
        checkpoints.load(tmp_path / "step-00000001", *trained(steps=0, **changes))


def test_the_model_alone_can_be_loaded(tmp_path):
    parts = trained()
    saved(tmp_path, 1, trained_parts=parts)
    path = tmp_path / "step-00000001"
    other, _ = trained(steps=0, seed=9)
    weights = {f"model.{name}": value.detach() for name, value in other.named_parameters()}
    load_tensors(path, weights, read_sealed(path / MANIFEST_NAME))
    assert all(torch.equal(one, two) for one, two in zip(parts[0].parameters(), other.parameters(), strict=True))


def test_a_checkpoint_may_be_moved(tmp_path):
    parts = trained()
    saved(tmp_path / "here", 1, trained_parts=parts)
    shutil.move(tmp_path / "here", tmp_path / "there")
    path, _ = newest(tmp_path / "there")
    other = trained(steps=0, seed=9)
    Checkpoints(tmp_path / "there", 1, IDENTITY).load(path, *other)
    assert torch.equal(other[0].norm.weight, parts[0].norm.weight)
