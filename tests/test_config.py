import re
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.config import read_toml, structure, unstructure
from shared.errors import ConfigError, UserError


@dataclass(frozen=True)
class Optimizer:
    rate: float
    warmup: int | None = None
    betas: tuple[float, ...] = (0.9, 0.95)


@dataclass(frozen=True)
class Source:
    path: str
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    optimizer: Optimizer
    num_steps: int = 10
    compile: bool = False
    sources: list[Source] = field(default_factory=list)

    def __post_init__(self):
        if self.num_steps < 0:
            raise ConfigError(f"num_steps is {self.num_steps}; 0 or more is wanted")


OPTIMIZER = {"rate": 0.5}


def test_plain_data_becomes_a_dataclass_with_its_defaults():
    data = {"optimizer": {"rate": 0.5, "warmup": 3}, "sources": [{"path": "a", "tags": ["x"]}]}
    assert structure(data, Recipe, "r.toml") == Recipe(Optimizer(0.5, 3), sources=[Source("a", ["x"])])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # tables
        ([], "[] is not a table"),
        (3, "3 is not a table"),
        ({"optimizer": 3}, "optimizer: 3 is not a table"),
        ({"optimizer": None}, "optimizer: None is not a table"),
        ({"optimizer": "rate"}, "optimizer: 'rate' is not a table"),
        ({"optimizer": OPTIMIZER, "sources": ["a"]}, "sources.0: 'a' is not a table"),
        # missing keys
        ({}, "optimizer is missing"),
        ({"optimizer": {}}, "optimizer.rate is missing"),
        ({"optimizer": OPTIMIZER, "sources": [{"path": "a"}, {}]}, "sources.1.path is missing"),
        # wrong types
        ({"optimizer": OPTIMIZER, "num_steps": "3"}, "num_steps: '3' is not a whole number"),
        ({"optimizer": OPTIMIZER, "num_steps": 3.0}, "num_steps: 3.0 is not a whole number"),
        ({"optimizer": OPTIMIZER, "num_steps": True}, "num_steps: True is not a whole number"),
        ({"optimizer": OPTIMIZER, "num_steps": None}, "num_steps: None is not a whole number"),
        ({"optimizer": OPTIMIZER, "compile": 1}, "compile: 1 is not true or false"),
        ({"optimizer": OPTIMIZER, "compile": "no"}, "compile: 'no' is not true or false"),
        ({"optimizer": {"rate": "0.5"}}, "optimizer.rate: '0.5' is not a number"),
        ({"optimizer": {"rate": False}}, "optimizer.rate: False is not a number"),
        ({"optimizer": {"rate": 0.5, "warmup": True}}, "optimizer.warmup: True is not a whole number"),
        ({"optimizer": OPTIMIZER, "sources": [{"path": 3}]}, "sources.0.path: 3 is not a string"),
        # lists
        ({"optimizer": OPTIMIZER, "sources": {"path": "a"}}, "sources: {'path': 'a'} is not a list"),
        ({"optimizer": OPTIMIZER, "sources": [{"path": "a", "tags": "ab"}]}, "sources.0.tags: 'ab' is not a list"),
        ({"optimizer": OPTIMIZER, "sources": [{"path": "a", "tags": ["x", 3]}]}, "sources.0.tags.1: 3 is not a string"),
        ({"optimizer": {"rate": 0.5, "betas": 0.9}}, "optimizer.betas: 0.9 is not a list"),
        ({"optimizer": {"rate": 0.5, "betas": [0.9, "x"]}}, "optimizer.betas.1: 'x' is not a number"),
        # what the dataclass itself refuses
        ({"optimizer": OPTIMIZER, "num_steps": -1}, "num_steps is -1; 0 or more is wanted"),
    ],
)
def test_data_that_does_not_fit_is_refused_with_the_path_to_it(data, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(f'r.toml: {message}')}$"):
        structure(data, Recipe, "r.toml")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"optimizer": OPTIMIZER, "num_step": 3},
            "unknown key 'num_step': did you mean 'num_steps'? (known: optimizer, num_steps, compile, sources)",
        ),
        (
            {"optimizer": {"rate": 0.5, "warm_up": 3}},
            "unknown key 'optimizer.warm_up': did you mean 'warmup'? (known: rate, warmup, betas)",
        ),
        (
            {"optimizer": OPTIMIZER, "sources": [{"path": "a", "tag": []}]},
            "unknown key 'sources.0.tag': did you mean 'tags'? (known: path, tags)",
        ),
        (  # a misspelled required key is told as such, not as missing
            {"optimiser": OPTIMIZER},
            "unknown key 'optimiser': did you mean 'optimizer'? (known: optimizer, num_steps, compile, sources)",
        ),
        (  # however far the nearest is
            {"optimizer": {"rate": 0.5, "zzz": 3}},
            "unknown key 'optimizer.zzz': did you mean 'warmup'? (known: rate, warmup, betas)",
        ),
        (
            {"optimizer": {"rate": 0.5, "b": 1, "beta": 1}},
            "unknown key 'optimizer.b': did you mean 'betas'? (known: rate, warmup, betas); "
            "unknown key 'optimizer.beta': did you mean 'betas'? (known: rate, warmup, betas)",
        ),
    ],
)
def test_an_unknown_key_is_refused_naming_the_nearest(data, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(f'r.toml: {message}')}$"):
        structure(data, Recipe, "r.toml")


def test_a_whole_number_is_a_number():
    rate = structure({"rate": 1}, Optimizer, "r.toml").rate
    assert (rate, type(rate)) == (1.0, float)


@pytest.mark.parametrize("warmup", [None, 0, 5])
def test_an_optional_value_may_be_absent(warmup):
    assert structure({"rate": 0.5, "warmup": warmup}, Optimizer, "r.toml").warmup == warmup


optimizers = st.builds(
    Optimizer,
    st.floats(allow_nan=False),
    st.none() | st.integers(),
    st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
)
sources = st.builds(Source, st.text(), st.lists(st.text(), max_size=3))


@settings(deadline=None)
@given(st.builds(Recipe, optimizers, st.integers(0), st.booleans(), st.lists(sources, max_size=3)))
def test_unstructure_and_structure_are_inverse(recipe):
    assert structure(unstructure(recipe), Recipe, "r.toml") == recipe


def test_toml_tables_are_read_as_utf8(tmp_path):
    (tmp_path / "r.toml").write_bytes('[a]\nb = "caf\u00e9"'.encode())
    assert read_toml(tmp_path / "r.toml") == {"a": {"b": "caf\u00e9"}}


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"r\.toml not found: name an existing recipe file$"):
        read_toml(tmp_path / "r.toml")


@pytest.mark.parametrize("contents", [b"a = ", b"[a\n", b"a = 1\na = 2", b"a = '\xff'"])
def test_a_recipe_that_is_not_toml_is_refused(tmp_path, contents):
    (tmp_path / "r.toml").write_bytes(contents)
    with pytest.raises(ConfigError, match=r"r\.toml is not valid TOML: .+"):
        read_toml(tmp_path / "r.toml")


def test_a_config_error_is_one_that_the_command_line_prints():
    assert issubclass(ConfigError, UserError)
