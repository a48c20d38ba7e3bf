import pytest
from pydantic import ValidationError

from pruning import Pruner, PruningConfig, make_pruner, method_names


def test_defaults_are_hieravid_unpruned():
    config = PruningConfig()
    assert (config.method, config.retention, config.preset) == ("hieravid", 1.0, "default")
    assert (config.tau, config.beta, config.max_block, config.merge_across_segments) == (0.6, 0.4, 1024, False)


def test_author_preset_sets_what_the_authors_do_differently():
    config = PruningConfig(preset="author")
    assert (config.merge_across_segments, config.budget_coupling, config.max_block) == (True, "author", None)
    assert (config.relevance_sign, config.relevance_transform, config.shape) == ("negative", "minmax", "author")


def test_explicit_values_win_over_the_preset():
    config = PruningConfig(preset="author", max_block=256, merge_across_segments=False)
    assert (config.max_block, config.merge_across_segments, config.budget_coupling) == (256, False, "author")


@pytest.mark.parametrize("preset", ["default", "author"])
def test_a_dumped_config_builds_itself_again(preset):
    config = PruningConfig(preset=preset, retention=0.3, tau=0.7)
    assert PruningConfig(**config.model_dump()) == config
    assert PruningConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retention": 0}, "retention\n.*greater than 0"),
        ({"retention": 1.5}, "retention\n.*less than or equal to 1"),
        ({"retention": float("nan")}, "retention\n"),
        ({"method": "hieravit"}, "unknown pruning method 'hieravit', known: .*did you mean 'hieravid'"),
        ({"method": "xyz"}, "unknown pruning method 'xyz', known: hieravid, none, random, uniform"),
        ({"taau": 0.5}, "taau\n.*not permitted"),
        ({"preset": "autor"}, "preset\n.*'default' or 'author'"),
        ({"relevance_transform": "softmax"}, "'minmax', 'rank' or 'exp'"),
        ({"tau": 2}, "tau\n.*less than or equal to 1"),
        ({"max_block": 1}, "max_block\n.*greater than or equal to 2"),
    ],
)
def test_a_mistake_names_the_key_and_what_is_allowed(options, message):
    with pytest.raises(ValidationError, match=message):
        PruningConfig(**options)


def test_config_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        PruningConfig().retention = 0.5


@pytest.mark.parametrize("name", ["hieravid", "none", "random", "uniform"])
def test_every_method_is_a_pruner(name):
    pruner = make_pruner(PruningConfig(method=name))
    assert name in method_names()
    assert isinstance(pruner, Pruner)
    assert pruner.name == name
    assert pruner.needs.last_token_attention == (name == "hieravid")
