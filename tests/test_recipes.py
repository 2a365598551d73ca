import pytest

from shared.config import structure, unstructure
from shared.errors import ConfigError
from tests.train_helpers import recipe
from train.config import RECIPES, RunConfig, load_recipe
from train.layout import num_parameters

NAMES = sorted(path.stem for path in RECIPES.glob("*.toml"))


def test_the_shipped_recipes_are_those_promised():
    assert NAMES == ["125m", "1b", "argonne-2.0", "tiny"]


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_loads_and_survives_a_manifest(name):
    config = load_recipe(name)
    assert structure(unstructure(config), RunConfig, "manifest") == config


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_reserves_chunks_and_validates(name):
    config = load_recipe(name)
    assert config.data.validation_chunks > 0
    assert config.total_steps > config.optimizer.warmup_steps


@pytest.mark.parametrize(
    ("name", "vocab", "billions"), [("125m", 50_304, 0.124), ("1b", 50_304, 1.1), ("argonne-2.0", 151_665, 5.6)]
)
def test_a_recipe_has_the_size_of_its_name(name, vocab, billions):
    model = load_recipe(name).model.resolved(vocab, 0)
    assert num_parameters(model) / 1e9 == pytest.approx(billions, rel=0.1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.hidden_size", 4096),
        ("model.num_hidden_layers", 24),
        ("model.num_attention_heads", 32),
        ("model.num_key_value_heads", 8),
        ("model.intermediate_size", 11008),
        ("model.max_position_embeddings", 4096),
        ("model.rope_theta", 500_000.0),
        ("data.sequence_length", 4096),
        ("optimizer.learning_rate", 3e-4),
        ("optimizer.min_learning_rate", 3e-5),
        ("optimizer.warmup_steps", 2000),
    ],
)
def test_argonne_2_has_the_numbers_of_its_generation(field, value):
    section, name = field.split(".")
    assert getattr(getattr(load_recipe("argonne-2.0"), section), name) == value


def test_a_recipe_file_is_loaded_by_its_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('strategy = "pipeline"\n[optimizer]\nlearning_rate = 1\n')
    config = load_recipe(str(path))
    assert (config.strategy, config.optimizer.learning_rate) == ("pipeline", 1.0)


# messages


def test_an_unknown_recipe_names_the_known():
    message = r"^recipe 'tinny' not found: one of 125m, 1b, argonne-2.0, tiny, or the path of a .toml file, is wanted$"
    with pytest.raises(ConfigError, match=message):
        load_recipe("tinny")


def test_a_recipe_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"mine.toml not found: name an existing recipe file"):
        load_recipe(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nhiden_size = 64", r"unknown key 'model.hiden_size': did you mean 'hidden_size'\?"),
        ("[modell]\nhidden_size = 64", r"unknown key 'modell': did you mean 'model'\?"),
        ("[optimizer]\nlr = 64", r"unknown key 'optimizer.lr': did you mean "),
        ("[training]\ntotal_step = 1", r"unknown key 'training.total_step': did you mean 'total_steps'\?"),
        ("[model]\nhidden_size = '64'", "model.hidden_size: '64' is not a whole number"),
        ("[model]\nhidden_size = 64.0", "model.hidden_size: 64.0 is not a whole number"),
        ("[model]\ntie_word_embeddings = 1", "model.tie_word_embeddings: 1 is not true or false"),
        ("model = 3", "model: 3 is not a table"),
        ("strategy = 'ddp'", "strategy: ddp not in .*'fsdp', 'pipeline'"),
        ("[data]\norder = 'random'", "data.order: random not in .*'natural', 'shuffled'"),
        ("[training]\nprecision = 'fp16'", "training.precision: fp16 not in .*'fp32', 'bf16'"),
        ("[optimizer]\nname = 'lion'", "optimizer.name: lion not in .*'adamw', 'muon'"),
        ("[optimizer]\nschedule = 'linear'", "optimizer.schedule: linear not in .*'cosine', 'constant', 'wsd'"),
        ("[model", "is not valid TOML"),
        ("[model]\nnum_key_value_heads = 3", "model.num_key_value_heads 3 does not divide num_attention_heads 32"),
    ],
)
def test_a_mistake_in_a_recipe_file_is_told_with_the_file(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"mine.toml.*{message}"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__sequence_length": 0}, "data.sequence_length 0 is too small: at least 1 is wanted"),
        ({"data__global_batch": 0}, "data.global_batch 0 is too small: at least 1 is wanted"),
        ({"data__validation_chunks": -4}, "data.validation_chunks -4 is too small: at least 0 is wanted"),
        (
            {"data__validation_chunks": 7},
            "data.validation_chunks 7 is not a multiple of data.global_batch 4: 8 is",
        ),
        (
            {"data__sequence_length": 65},
            "data.sequence_length 65 is longer than model.max_position_embeddings 64: shorten the one or raise",
        ),
        ({"optimizer__learning_rate": -1.0}, "optimizer.learning_rate -1.0 is too small: at least 0 is wanted"),
        ({"optimizer__min_learning_rate": -1.0}, "optimizer.min_learning_rate -1.0 is too small"),
        ({"optimizer__warmup_steps": -1}, "optimizer.warmup_steps -1 is too small: at least 0 is wanted"),
        ({"optimizer__weight_decay": -0.1}, "optimizer.weight_decay -0.1 is too small: at least 0 is wanted"),
        ({"optimizer__beta1": 1.0}, "optimizer.beta1 1.0 is out of range: 0 or more and less than 1 is wanted"),
        ({"optimizer__beta2": 1.5}, "optimizer.beta2 1.5 is out of range: 0 or more and less than 1 is wanted"),
        ({"optimizer__momentum": 1.0}, "optimizer.momentum 1.0 is out of range: 0 or more and less than 1 is wanted"),
        ({"optimizer__cooldown_fraction": 1.5}, "optimizer.cooldown_fraction 1.5 is out of range: 0 to 1 is wanted"),
        ({"optimizer__cooldown_fraction": -0.1}, "optimizer.cooldown_fraction -0.1 is out of range: 0 to 1 is wanted"),
        (
            {"optimizer__embedding_learning_rate_factor": 0.0},
            "optimizer.embedding_learning_rate_factor 0.0 is too small: more than 0 is wanted",
        ),
        ({"optimizer__epsilon": 0.0}, "optimizer.epsilon 0.0 is too small: more than 0 is wanted"),
        ({"optimizer__max_grad_norm": 0.0}, "optimizer.max_grad_norm 0.0 is too small: more than 0 is wanted"),
        ({"training__total_steps": 0}, "training.total_steps 0 is too small: at least 1 is wanted"),
        ({"training__total_tokens": 0}, "training.total_tokens 0 is too small: at least 1 is wanted"),
        (
            {"training__total_tokens": 64},
            "training.total_steps 4 and training.total_tokens 64 are both given: one is wanted, set the other to None",
        ),
        ({"training__microbatch": 0}, "training.microbatch 0 is too small: at least 1 is wanted"),
        ({"training__validate_every": 0}, "training.validate_every 0 is too small: at least 1 is wanted"),
        ({"checkpoint__every": 0}, "checkpoint.every 0 is too small: at least 1 is wanted"),
        ({"checkpoint__keep": 0}, "checkpoint.keep 0 is too small: at least 1 is wanted"),
        ({"pipeline__stages": 0}, "pipeline.stages 0 is too small: at least 1 is wanted"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)
