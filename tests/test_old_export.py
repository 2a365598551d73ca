"""An Argonne 1.x goes out to `transformers` as what it was, with its own classes, names and labels."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file

from shared.errors import FormatError
from shared.format import read_index
from tests.helpers import run_cli
from tests.old_argonne import OldModel, save
from tests.train_helpers import recipe, some_ids
from train.export import export
from train.imported import with_tokenizer, write_import
from train.legacy_checkpoint import read_legacy
from train.modeling_argonne import ArgonneModel

SIZES = {"vocab_size": 2112, "block_size": 80, "n_layer": 2, "n_head": 4, "n_embd": 36}


@pytest.fixture(scope="module")
def exported(small_tokens, tmp_path_factory):
    """An old model, and the run and folder that the commands made of its checkpoint."""
    directory = tmp_path_factory.mktemp("old")
    torch.manual_seed(0)
    old = OldModel(**SIZES).eval()
    save(directory / "old.pth", old.state_dict())
    return old, *imported_and_exported(directory, small_tokens)


def imported_and_exported(directory, tokens, *options):
    """The run and the folder that are made of old.pth in `directory`."""
    run, out = directory / f"run{len(options)}", directory / f"out{len(options)}"
    told = ("--heads", 4, "--tokenizer", tokens / "tokenizer.json", "--data.sequence-length", 16)
    done = run_cli("train", "import", directory / "old.pth", run, *told, *options)
    assert done.returncode == 0, done.stderr
    export(run, out, "fp32")
    return run, out


@pytest.fixture(scope="module")
def loaded(exported):
    return ArgonneModel.from_pretrained(exported[2]).eval()


def test_it_has_the_logits_and_the_names_that_it_had(exported, loaded):
    old, _, out = exported
    weights = load_file(out / "model.safetensors")
    assert weights.keys() == {name for name, _ in old.named_parameters()}
    with torch.no_grad():
        torch.testing.assert_close(loaded(some_ids(2, 40)).logits, old(some_ids(2, 40)), atol=1e-5, rtol=0)


def test_its_card_says_what_it_is_and_that_nobody_shifts_labels(exported):
    old, _, out = exported
    card = (out / "README.md").read_text()
    size = sum(parameter.numel() for parameter in old.parameters())
    for fact in (f"{size:,} parameters", "100 steps", "trust_remote_code=True", "nobody shifts labels", "custom_code"):
        assert fact in card
    assert "Begun from old.pth." in card
    assert "It has not been trained on since." in card


def test_the_loss_of_transformers_is_of_labels_that_nobody_shifts(exported, loaded):
    ids, labels = some_ids(2, 24), some_ids(2, 24, seed=1)
    labels[0, :3] = -100
    with torch.no_grad():
        wanted = F.cross_entropy(exported[0](ids).flatten(0, 1), labels.flatten(), ignore_index=-100)
        torch.testing.assert_close(loaded(ids, labels=labels).loss, wanted, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"does not shift them, give the ids that come next"):
        loaded(ids, labels=ids)
    with pytest.raises(ValueError, match="81 positions are given, the model has 80"):
        loaded(some_ids(1, 81))


def test_an_old_model_that_is_told_how_a_document_ends_stops_there(exported, small_tokens):
    _, run, out = exported
    assert "has no end that was told" in (out / "README.md").read_text()
    assert ArgonneModel.from_pretrained(out).generation_config.eos_token_id is None
    end = read_index(small_tokens).tokenizer.end_of_document_id
    _, told = imported_and_exported(run.parent, small_tokens, "--model.eos-token-id", end)
    assert f"A document ends with id {end}" in (told / "README.md").read_text()
    assert ArgonneModel.from_pretrained(told).generation_config.eos_token_id == end


def test_padding_before_a_prompt_changes_nothing(exported, loaded):
    ids = some_ids(2, 6)
    padded = F.pad(ids, (3, 0))
    mask = F.pad(torch.ones_like(ids), (3, 0))
    how = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    alone = loaded.generate(ids, attention_mask=torch.ones_like(ids), **how)
    assert torch.equal(loaded.generate(padded, attention_mask=mask, **how)[:, 3:], alone)
    with torch.no_grad():
        for place in range(6, 26):
            assert torch.equal(exported[0](alone[:, :place])[:, -1, :2048].argmax(-1), alone[:, place])


def test_a_tokenizer_that_is_not_the_models_is_refused(small_tokens, tmp_path):
    found = read_legacy(save(tmp_path / "old.pth", OldModel(64, 24, 1, 4, 36).state_dict()), 4)
    with pytest.raises(FormatError, match="gives 2,048 ids, the model has 64 rows"):
        with_tokenizer(found, small_tokens / "tokenizer.json")
    with pytest.raises(FormatError, match="not found: name the tokenizer"):
        with_tokenizer(found, tmp_path / "none.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FormatError, match=r"is not a tokenizer\.json"):
        with_tokenizer(found, tmp_path / "tokenizer.json")
    write_import(found, tmp_path / "run", recipe(data__sequence_length=16))
    with pytest.raises(FormatError, match=r"has no tokenizer\.json: a model that was imported"):
        export(tmp_path / "run", tmp_path / "out", "fp32")
