import pytest

from shared.config import structure
from shared.errors import ConfigError
from train.config import RunConfig
from train.data_config import DataConfig
from train.data_sources import DataSource, mixture_of

WEB, CODE = DataSource("web", 0.7), DataSource("code", 0.3)


def test_a_recipe_lists_sources_as_tables():
    tables = {"data": {"sources": [{"name": "web", "weight": 0.7}, {"name": "code", "weight": 1, "max_passes": 2}]}}
    sources = structure(tables, RunConfig, "r.toml").data.sources
    assert sources == (DataSource("web", 0.7), DataSource("code", 1.0, 2.0))


def test_the_turns_of_sources_are_those_of_their_weights_as_written():
    assert mixture_of((WEB, CODE)).weights == (7, 3)


@pytest.mark.parametrize(
    ("name", "weight", "max_passes", "message"),
    [
        ("../web", 1.0, None, "data.sources: '../web' is no name of a directory in TOKENS"),
        ("", 1.0, None, "data.sources: '' is no name"),
        ("w\x1b[2J", 1.0, None, r"data.sources: 'w\x1b[2J' is no name"),
        (".", 1.0, None, "data.sources: '.' is no name"),
        ("web", 0.0, None, "data.sources: web has weight 0.0: a number above 0 is wanted"),
        ("web", float("nan"), None, "data.sources: web has weight nan: a number above 0 is wanted"),
        ("web", float("inf"), None, "data.sources: web has weight inf: a number above 0 is wanted"),
        ("web", 1.0, -1.0, "data.sources: web has max_passes -1.0: a number above 0 is wanted"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(name, weight, max_passes, message):
    with pytest.raises(ConfigError) as error:
        DataSource(name, weight, max_passes)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ((WEB, CODE, WEB), "data.sources has web 2 times: list it once, with the sum of them"),
        (
            (DataSource("web", 0.1234567), DataSource("code", 0.8765433)),
            "data.sources has weights (web 0.1234567, code 0.8765433) whose order repeats after 10,000,000 sequences: "
            "give them with fewer digits, for at most 100,000",
        ),
    ],
)
def test_sources_that_do_not_fit_together_are_refused(sources, message):
    with pytest.raises(ConfigError) as error:
        DataConfig(sources=sources)
    assert str(error.value) == message
