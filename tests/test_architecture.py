import dataclasses

import pytest

from shared.errors import ConfigError
from tests.train_helpers import architecture
from train.architecture import LEGACY_NAMES, ArgonneConfig, nearest_multiple, rename_legacy
from train.config import load_recipe

NEW_VALUES = {"n_layer": 3, "n_head": 8, "n_embd": 64, "block_size": 48}


# 1.x names


@pytest.mark.parametrize(("old", "new"), LEGACY_NAMES.items())
def test_an_old_name_alone_sets_the_new_one(old, new):
    assert getattr(ArgonneConfig(**{old: NEW_VALUES[old]}), new) == NEW_VALUES[old]


def test_the_old_names_together_give_the_architecture_of_the_new():
    assert ArgonneConfig(**NEW_VALUES) == ArgonneConfig(
        num_hidden_layers=3, num_attention_heads=8, hidden_size=64, max_position_embeddings=48
    )


@pytest.mark.parametrize(("old", "new"), LEGACY_NAMES.items())
def test_an_old_name_may_repeat_the_new(old, new):
    assert getattr(ArgonneConfig(**{old: NEW_VALUES[old], new: NEW_VALUES[old]}), new) == NEW_VALUES[old]


@pytest.mark.parametrize(("old", "new"), LEGACY_NAMES.items())
def test_an_old_name_that_contradicts_the_new_is_refused(old, new):
    with pytest.raises(ConfigError, match=f"^{old}={NEW_VALUES[old]} contradicts {new}=32: give one of them$"):
        ArgonneConfig(**{old: NEW_VALUES[old], new: 32})


@pytest.mark.parametrize(("old", "new"), LEGACY_NAMES.items())
def test_the_default_of_the_new_name_contradicts_nothing(old, new):
    assert getattr(ArgonneConfig(), new) != getattr(ArgonneConfig(**{old: NEW_VALUES[old]}), new)


def test_a_copy_of_a_configuration_made_with_old_names_can_be_changed():
    config = dataclasses.replace(ArgonneConfig(block_size=48), max_position_embeddings=96)
    assert config.max_position_embeddings == 96


def test_names_of_today_are_left_as_they_are():
    assert rename_legacy({"hidden_size": 1, "other": 2}) == {"hidden_size": 1, "other": 2}


def toml(directory, text):
    path = directory / "r.toml"
    path.write_text(text)
    return str(path)


def test_a_recipe_may_use_the_old_names(tmp_path):
    config = load_recipe(toml(tmp_path, "[model]\nn_layer = 3\nn_head = 8\nn_embd = 64\nblock_size = 2048\n"))
    assert (config.model.num_hidden_layers, config.model.num_attention_heads) == (3, 8)
    assert (config.model.hidden_size, config.model.max_position_embeddings) == (64, 2048)


def test_a_recipe_that_contradicts_itself_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="n_layer=3 contradicts num_hidden_layers=4"):
        load_recipe(toml(tmp_path, "[model]\nn_layer = 3\nnum_hidden_layers = 4\n"))


# what follows from what


@pytest.mark.parametrize(
    ("heads", "given", "kv_heads"),
    [
        (1, None, 1),
        (2, None, 1),
        (4, None, 2),
        (5, None, 1),  # half is 2, which does not divide 5
        (7, None, 1),
        (9, None, 3),
        (32, None, 16),
        (32, 8, 8),
    ],
)
def test_key_value_heads_are_half_or_the_nearest_smaller_divisor(heads, given, kv_heads):
    assert (
        architecture(num_attention_heads=heads, hidden_size=64 * heads, num_key_value_heads=given).kv_heads == kv_heads
    )


@pytest.mark.parametrize(("hidden", "width"), [(96, 256), (192, 512), (768, 2048), (4096, 11008)])
def test_the_feed_forward_width_is_8_thirds_rounded_up_to_256(hidden, width):
    assert architecture(hidden_size=hidden, intermediate_size=None).feed_forward == width


@pytest.mark.parametrize(("vocab_size", "rows"), [(1, 64), (64, 64), (65, 128), (50_257, 50_304), (151_665, 151_680)])
def test_the_vocabulary_is_the_datasets_rounded_up_to_64(vocab_size, rows):
    assert architecture(vocab_size=None).resolved(vocab_size, 0).vocab_size == rows


def test_resolving_leaves_no_none_that_a_dataset_can_answer():
    config = architecture(vocab_size=None, num_key_value_heads=None, intermediate_size=None).resolved(100, 7)
    assert (config.num_key_value_heads, config.intermediate_size) == (2, 256)
    assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == (7, 7, 7)


def test_resolving_keeps_what_was_given():
    given = architecture(vocab_size=1000, eos_token_id=1, bos_token_id=2, pad_token_id=3)
    assert given.resolved(100, 7) == given


def test_padding_and_beginning_fall_back_to_the_end_that_was_given():
    config = architecture(eos_token_id=5).resolved(64, 7)
    assert (config.eos_token_id, config.bos_token_id, config.pad_token_id) == (5, 5, 5)


@pytest.mark.parametrize(
    ("value", "factor", "nearest"), [(190, 12, 192), (1, 8, 8), (0, 8, 8), (20, 8, 16), (24, 8, 24)]
)
def test_the_nearest_multiple_is_never_zero(value, factor, nearest):
    assert nearest_multiple(value, factor) == nearest


# messages


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "model.hidden_size 0 is too small: at least 1 is wanted"),
        ({"num_hidden_layers": 0}, "model.num_hidden_layers 0 is too small: at least 1 is wanted"),
        ({"num_attention_heads": -1}, "model.num_attention_heads -1 is too small: at least 1 is wanted"),
        ({"max_position_embeddings": 0}, "model.max_position_embeddings 0 is too small: at least 1 is wanted"),
        ({"vocab_size": 0}, "model.vocab_size 0 is too small: at least 1 is wanted"),
        ({"num_key_value_heads": 0}, "model.num_key_value_heads 0 is too small: at least 1 is wanted"),
        ({"intermediate_size": 0}, "model.intermediate_size 0 is too small: at least 1 is wanted"),
        ({"sliding_window": 0}, "model.sliding_window 0 is too small: at least 1 is wanted"),
        ({"vocab_size": None, "eos_token_id": -1}, "model.eos_token_id -1 is no id of the model: 0 or more is wanted"),
        (
            {"vocab_size": 64, "bos_token_id": 64},
            "model.bos_token_id 64 is no id of the model: a number below model.vocab_size 64 is wanted",
        ),
        ({"hidden_dropout": 1.0}, "model.hidden_dropout 1.0 is out of range: 0 or more and less than 1 is wanted"),
        ({"attention_dropout": -0.1}, "model.attention_dropout -0.1 is out of range: 0 or more and less than 1"),
        (
            {"num_attention_heads": 6, "num_key_value_heads": 2},
            "model.hidden_size 32 is not an even multiple of num_attention_heads 6: 36 is",
        ),
        ({"head_size": 7}, "model.head_size 7 is odd: halves of it are rotated"),
        (
            {"num_key_value_heads": 3},
            "model.num_key_value_heads 3 does not divide num_attention_heads 4: one of 1, 2, 4 does",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_one_that_does(changes, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        architecture(**changes)


def test_a_vocabulary_too_small_for_the_dataset_is_refused():
    message = r"model.vocab_size 64 is too small for the dataset, .* ids up to 99: leave it out or give at least 100$"
    with pytest.raises(ConfigError, match=message):
        architecture(vocab_size=64).resolved(100, 0)


def test_a_vocabulary_that_nobody_has_said_is_asked_for():
    with pytest.raises(ConfigError, match=r"^model.vocab_size is not set: give it, or resolve the configuration"):
        _ = architecture(vocab_size=None).vocab
