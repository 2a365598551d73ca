"""What a run exports is loaded by `transformers` to the same model, or is not there."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.cursor import Cursor
from shared.errors import ConfigError, FormatError
from shared.format import read_index
from shared.storage import sha256_file
from tests.helpers import run_cli
from tests.report_runs import steps, write_run
from tests.train_helpers import architecture, group_of_one, lively_model, plain, recipe
from train.checkpoint import Checkpoints, Progress
from train.commands import main
from train.export import export
from train.llama import argonne_config, argonne_name, llama_config, llama_name
from train.optim import build_optimizer, create_state
from train.run_files import CHECKPOINTS_NAME
from train.weight_files import INDEX_NAME, in_files, read_weights, write_weights


def write_exportable(run, tokens, **changes):
    """A run's directory with one checkpoint of a lively model, and the dataset's tokenizer."""
    index = read_index(tokens)
    identity = index.tokenizer
    model = architecture(**{"vocab_size": 2112, "max_position_embeddings": 128, **changes}).resolved(
        identity.vocab_size, identity.end_of_document_id
    )
    config = replace(recipe(), model=model)
    write_run(run, steps(1, 7), [], plain(config))
    shutil.copyfile(tokens / "tokenizer.json", run / "tokenizer.json")
    module = lively_model(model)
    optimizer = build_optimizer(config.optimizer, module)
    create_state(optimizer)
    told = {"recipe": plain(config), "dataset": index.fingerprint, "packing": None, "tokenizer": identity.sha256}
    checkpoints = Checkpoints(run / CHECKPOINTS_NAME, 2, told)
    with group_of_one():
        checkpoints.save(module, optimizer, Progress(7, Cursor(0, 0, 28), 448, "digest"))
        checkpoints.close()
    return module


@pytest.fixture(scope="module")
def exported(small_tokens, tmp_path_factory):
    """A run, its model, and the folder that the command made of it."""
    run = tmp_path_factory.mktemp("exported") / "run"
    module = write_exportable(run, small_tokens)
    done = run_cli("train", "export", run, run.parent / "out")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return run, module, run.parent / "out", done.stdout


def test_transformers_gives_the_logits_of_the_run(exported):
    _, module, out, told = exported
    loaded = AutoModelForCausalLM.from_pretrained(out).eval()
    ids = torch.randint(0, module.config.vocab, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, module(ids), atol=1e-4, rtol=0)
    assert "step 7" in told
    assert AutoTokenizer.from_pretrained(out).eos_token_id == module.config.eos_token_id


def test_what_fills_up_the_vocabulary_is_never_generated(exported):
    _, module, out, _ = exported
    loaded = AutoModelForCausalLM.from_pretrained(out)
    num_ids = len(AutoTokenizer.from_pretrained(out))
    assert num_ids < module.config.vocab
    assert loaded.generation_config.suppress_tokens == list(range(num_ids, module.config.vocab))


def test_the_model_card_tells_hashes_tokens_losses_and_recipe(exported):
    run, _, out, _ = exported
    card = (out / "README.md").read_text()
    manifest = json.loads((run / "checkpoints/step-00000007/MANIFEST.json").read_text())
    for fact in (
        manifest["data_digest"],
        manifest["fingerprint"],
        "448 tokens",
        "| 7 | 700 | 5 |",
        '"learning_rate": 0.01',
    ):
        assert fact in card
    assert f"| loss.png | `{sha256_file(out / 'loss.png')}` |" in card
    assert "![losses against tokens](loss.png)" in card


def test_bf16_weights_are_the_rounded_ones(exported, tmp_path):
    run, module, _, _ = exported
    assert main(["export", str(run), str(tmp_path / "out"), "--dtype", "bf16"], None) == 0
    weights = load_file(tmp_path / "out/model.safetensors")
    for name, parameter in module.named_parameters():
        assert torch.equal(weights[llama_name(name)], parameter.bfloat16())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_a_folder_that_loads_as_another_model_is_not_exported(exported, tmp_path, monkeypatch):
    run = exported[0]
    names = {"blocks.0.attn.q_proj.weight": "model.layers.1.self_attn.q_proj.weight"}
    names |= {"blocks.1.attn.q_proj.weight": "model.layers.0.self_attn.q_proj.weight"}
    monkeypatch.setattr("train.export_form.llama_name", lambda name: names.get(name) or llama_name(name))
    with pytest.raises(FormatError, match="a logit is off by"):
        export(run, tmp_path / "out", "fp32")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_exported_over_what_is_there(exported, tmp_path):
    with pytest.raises(ConfigError, match="is there already: name another folder"):
        export(exported[0], tmp_path, "fp32")
    with pytest.raises(FormatError, match="has no checkpoint"):
        export(tmp_path, tmp_path / "out", "fp32")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"qk_norm": True}, "qk_norm True"),
        ({"logit_softcap": 15.0}, "logit_softcap 15.0"),
        ({"sliding_window": 8}, "8"),
    ],
)
def test_what_no_llama_does_is_refused(changes, named):
    with pytest.raises(ConfigError, match=f"{named} is found, which LlamaForCausalLM does not have"):
        llama_config(architecture(**changes), "float32")
    llama_config(architecture(sliding_window=64), "float32")  # sees all of 64 positions


# names, configurations, files


@pytest.mark.parametrize("tied", [True, False])
def test_names_and_configuration_come_back(tied):
    sizes = {"head_size": None if tied else 12, "rope_theta": 5e5, "eos_token_id": 3}
    config = architecture(tie_word_embeddings=tied, attention_bias=True, mlp_bias=True, **sizes)
    names = [name for name, _ in lively_model(config).named_parameters()]
    assert [argonne_name(llama_name(name)) for name in names] == names
    assert argonne_config(llama_config(config, "float32"), "config.json") == config


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type 'llama3'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_an_argonne_model_does_not_do_is_refused(changes, found):
    document = llama_config(architecture(), "float32") | changes
    with pytest.raises(FormatError, match=f"c.json says {found}.*can be imported"):
        argonne_config(document, "c.json")


def test_files_are_as_large_as_is_allowed_and_no_larger():
    tensors = {name: torch.zeros(size) for name, size in (("a", 3), ("b", 2), ("c", 9), ("d", 1))}
    assert in_files(tensors, 20) == [["a", "b"], ["c"], ["d"]]
    assert in_files(tensors, 10**9) == [["a", "b", "c", "d"]]


def test_weights_in_several_files_are_found_by_their_index(tmp_path):
    tensors = {f"t{number}": torch.rand(4) for number in range(5)}
    written = write_weights(tmp_path, tensors, most_bytes=32)
    assert sorted(written) == sorted(path.name for path in tmp_path.iterdir())
    assert len(written) == 4
    found = read_weights(tmp_path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_damaged_weights_are_named(tmp_path):
    with pytest.raises(FormatError, match=r"has neither model\.safetensors nor"):
        read_weights(tmp_path)
    save_file({"a": torch.zeros(4)}, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-3])
    with pytest.raises(FormatError, match=r"model\.safetensors is damaged"):
        read_weights(tmp_path)
    for places, problem in (
        ({"a": "../x.safetensors"}, "not in that folder: do not trust it"),
        ({"a": "y.safetensors"}, "y.safetensors is missing"),
    ):
        (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": places}))
        with pytest.raises(FormatError, match=problem):
            read_weights(tmp_path)
    (tmp_path / INDEX_NAME).write_text("[]")
    with pytest.raises(FormatError, match="is not an index of weights"):
        read_weights(tmp_path)
