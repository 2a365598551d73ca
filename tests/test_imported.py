"""A model from elsewhere goes on as a run: out to `transformers` and back, by real commands."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from shared.config import structure
from shared.cursor import Cursor
from shared.errors import ConfigError, FormatError
from shared.format import open_tokens, read_index
from shared.storage import read_sealed
from tests.helpers import run_cli
from tests.test_export import write_exportable
from tests.train_helpers import MODEL, random_tokens, recipe, write_tokens
from train.commands import main
from train.config import RunConfig, load_recipe
from train.export import export
from train.imported import Found, write_import
from train.legacy_place import Place
from train.llama_folder import read_llama
from train.preflight import prepare
from train.request import RunRequest
from train.sample import load_model

SMALL = ("--data.sequence-length", 16, "--data.global-batch", 4, "--data.order", "natural", "--training.microbatch", 2)
SMALL += ("--optimizer.warmup-steps", 1, "--optimizer.learning-rate", 1e-3, "--checkpoint.every", "None")
SIZES = [(f"--model.{name.replace('_', '-')}", value) for name, value in MODEL.items() if name != "vocab_size"]


def train(tokens, run, *options):
    done = run_cli("train", "run", tokens, run, "--nproc", 1, *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def imported(source, out, *options):
    done = run_cli("train", "import", source, out, *SMALL, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama that `transformers` made and saved, without a tokenizer."""
    directory = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(**{**MODEL, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 0})
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.mark.slow
def test_an_exported_model_comes_back_and_goes_on_with_its_loss(small_tokens, tmp_path):
    module = write_exportable(tmp_path / "run", small_tokens)
    export(tmp_path / "run", tmp_path / "out", "fp32")
    config = recipe(data__global_batch=4, data__order="natural", training__total_steps=1)
    path = write_import(read_llama(tmp_path / "out"), tmp_path / "back", config)
    assert load_model(tmp_path / "back")[0].config == module.config
    again = train(small_tokens, tmp_path / "back", "--recipe", path)
    assert abs(again[0]["loss"] - loss_of_transformers(small_tokens, tmp_path / "out", 0)) < 1e-4


@pytest.mark.long
def test_a_run_goes_out_and_comes_back_and_goes_on_with_the_same_loss(small_tokens, tmp_path):
    run, out, back = (tmp_path / name for name in ("run", "out", "back"))
    options = [*SMALL, *(word for pair in SIZES for word in pair), "--model.vocab-size", 2112]
    train(small_tokens, run, *options, "--training.total-steps", 9, "--stop-step", 3)
    done = run_cli("train", "export", run, out)
    assert done.returncode == 0, done.stderr
    told = imported(out, back, "--training.total-steps", 1)
    assert "model.layers.0.self_attn.q_proj.weight: blocks.0.attn.q_proj.weight" in told
    ours, theirs = (load_model(directory)[0] for directory in (run, back))
    assert ours.config == theirs.config
    on = train(small_tokens, run, *options, "--training.total-steps", 9, "--stop-step", 4)
    again = train(small_tokens, back, "--recipe", back / "recipe.toml")
    assert [record["step"] for record in (on[-1], *again)] == [4, 1]
    assert abs(on[-1]["loss"] - loss_of_transformers(small_tokens, out, 3 * 4)) < 1e-4
    assert abs(again[0]["loss"] - loss_of_transformers(small_tokens, out, 0)) < 1e-4


def loss_of_transformers(tokens, out, chunk):
    """By `transformers`, the loss of the global batch that begins with a chunk, under the exported weights."""
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    ids = torch.tensor(open_tokens(tokens, read_index(tokens), 0)[chunk * 16 : (chunk + 4) * 16 + 1].astype("int64"))
    inputs, targets = ids[:-1].view(4, 16), ids[1:].view(4, 16)
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten()).item()


def test_a_llama_of_transformers_has_its_logits_here(folder, tmp_path):
    told = imported(folder, tmp_path / "run", "--training.total-steps", 1)
    assert "renamed, 0 dropped" in told
    config = structure(
        read_sealed(next((tmp_path / "run/checkpoints").iterdir()) / "MANIFEST.json")["recipe"], RunConfig, ""
    )
    assert load_recipe(str(tmp_path / "run/recipe.toml")) == config
    assert config.model == read_llama(folder).config
    with pytest.raises(FormatError, match=r"has no tokenizer\.json: a model that was imported"):
        load_model(tmp_path / "run")


def test_an_import_is_whole_or_absent(folder, tmp_path):
    found = read_llama(folder)
    with pytest.raises(ConfigError, match="is there already: name another directory"):
        write_import(found, folder, recipe())
    wrong = Found(found.source, found.config, found.weights | {"norm.weight": torch.zeros(3)}, {})
    with pytest.raises(FormatError, match=r"norm\.weight is \(3,\), its architecture wants \(32,\)"):
        write_import(wrong, tmp_path / "out", recipe())
    with pytest.raises(ConfigError, match=r"is longer than model\.max_position_embeddings"):
        write_import(
            found, tmp_path / "out", recipe(data__sequence_length=128, model={**MODEL, "max_position_embeddings": 128})
        )
    assert list(tmp_path.iterdir()) == []


def test_a_model_from_elsewhere_goes_on_with_the_mixture_of_its_recipe(folder, tmp_path):
    sources = [{"name": "web", "weight": 0.75, "max_passes": 3.0}, {"name": "code", "weight": 0.25}]
    config = recipe(data__sources=sources)
    path = write_import(read_llama(folder), tmp_path / "run", config)
    for name in ("web", "code"):
        write_tokens(tmp_path / "tokens" / name, [random_tokens(400)], vocab_size=64)
    prepared = prepare(RunRequest(tmp_path / "tokens", tmp_path / "run", load_recipe(str(path))), 1)
    assert prepared.config.data == config.data


def test_what_the_weights_settle_is_not_asked_for_what_they_leave_open_is(folder, tmp_path, capfd):
    told = [str(folder), str(tmp_path / "run"), *map(str, SMALL)]
    assert main(["import", *told, "--model.num-attention-heads", "2"], None) == 2
    refusal = (
        f"model.num_attention_heads 2 is asked for, the weights of {folder} are for {MODEL['num_attention_heads']}"
    )
    assert refusal in capfd.readouterr().err
    assert main(["import", *told, "--heads", "2"], None) == 2
    assert "--heads is of an old checkpoint file: a Hugging Face folder tells its own" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["import", *told, "--model.hidden-dropout", "0.1", "--model.rope-theta", "500"], None) == 0
    model, there = load_recipe(str(tmp_path / "run" / "recipe.toml")).model, read_llama(folder).config
    assert model == replace(there, hidden_dropout=0.1, rope_theta=500.0)


def test_what_is_no_llama_folder_is_refused(folder, tmp_path):
    with pytest.raises(FormatError, match=r"config\.json not found: name a folder"):
        read_llama(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "config.json").write_text("{")
    with pytest.raises(FormatError, match="is not JSON"):
        read_llama(copy)
    (copy / "config.json").write_text("[]")
    with pytest.raises(FormatError, match="holds no settings"):
        read_llama(copy)


def test_a_model_at_the_end_of_its_schedule_is_given_a_later_one(folder, tmp_path):
    config = recipe(training__total_steps=80_000)
    path = write_import(replace(read_llama(folder), step=80_000), tmp_path / "run", config)
    write_tokens(tmp_path / "tokens", [random_tokens(400)], vocab_size=64)
    request = RunRequest(tmp_path / "tokens", tmp_path / "run", load_recipe(str(path)))
    with pytest.raises(ConfigError, match=r"is at step 80,000, training\.total_steps 80,000 is not after it: give"):
        prepare(request, 1)
    later = replace(config.training, total_steps=80_001)
    prepare(replace(request, config=replace(request.config, training=later)), 1)


def test_a_place_in_a_dataset_of_another_tokenizer_is_refused(folder, tmp_path):
    found = replace(read_llama(folder), tokenizer=b"{}")
    place = Place("d" * 64, "t" * 64, Cursor(0, 0, 0), "")
    with pytest.raises(ConfigError, match=r"tokenizer tttttttttttt, the model has 44136fa355b3: make it with the"):
        write_import(found, tmp_path / "run", recipe(), place)
