import pickle

import pytest
from pydantic import ValidationError

from pruning import Pruner, PruningConfig, make_pruner, method_names
from pruning.config import option_names, written_out


def test_without_preset_and_calibration_options_are_the_authors():
    config = PruningConfig()
    assert (config.method, config.retention, config.preset, config.calibration) == ("hieravid", 1.0, None, "auto")
    assert (config.tau, config.beta, config.max_block, config.merge_across_segments) == (0.6, 0.4, None, True)
    assert (config.relevance_sign, config.relevance_transform, config.shape) == ("negative", "minmax", "author")
    assert config.budget_coupling == "author"
    named = PruningConfig(preset="author")
    assert {**named.model_dump(), "preset": None} == config.model_dump()


def test_the_default_preset_is_the_field_defaults():
    config = PruningConfig(preset="default")
    for name in option_names():
        assert getattr(config, name) == PruningConfig.model_fields[name].default


def test_explicit_values_win_over_the_preset():
    config = PruningConfig(preset="author", max_block=256, merge_across_segments=False)
    assert (config.max_block, config.merge_across_segments, config.budget_coupling) == (256, False, "author")


def test_what_a_preset_gives_is_not_written_out():
    config = PruningConfig(preset="author", beta=0.4, retention=0.3)
    assert written_out(config) == {"beta": 0.4}
    assert written_out(pickle.loads(pickle.dumps(config))) == {"beta": 0.4}


def test_levels_stand_in_order_without_repeats():
    assert PruningConfig(levels=["layer", "segment", "layer"]).levels == ("segment", "layer")


@pytest.mark.parametrize("preset", ["default", "author", None])
def test_a_dumped_config_builds_itself_again(preset):
    config = PruningConfig(preset=preset, retention=0.3, tau=0.7, levels=("segment", "frame"))
    assert PruningConfig(**config.model_dump()) == config
    assert PruningConfig.model_validate_json(config.model_dump_json()) == config


def test_another_method_dumps_no_options_of_hieravid():
    config = PruningConfig(method="uniform", retention=0.3)
    assert config.model_dump() == {"method": "uniform", "retention": 0.3, "kv_retention": 1.0}
    assert PruningConfig(**config.model_dump()) == config
    assert PruningConfig(method="uniform", preset=None, calibration=None) == PruningConfig(
        method="uniform", calibration=None
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retention": 0}, "retention\n.*greater than 0"),
        ({"retention": 1.5}, "retention\n.*less than or equal to 1"),
        ({"retention": float("nan")}, "retention\n"),
        ({"retention": True}, "retention\n.*truth value"),
        ({"method": "hieravit"}, "unknown pruning method 'hieravit', known: .*did you mean 'hieravid'"),
        ({"method": "xyz"}, "unknown pruning method 'xyz', known: .*hieravid, none, .*uniform"),
        ({"taau": 0.5}, "taau\n.*not permitted"),
        ({"preset": "autor"}, "preset\n.*'default' or 'author'"),
        ({"relevance_transform": "softmax"}, "'minmax', 'rank' or 'exp'"),
        ({"selection": "topk"}, "'dpp', 'relevance' or 'uniform'"),
        ({"tau": 2}, "tau\n.*less than or equal to 1"),
        ({"max_block": 1}, "max_block\n.*greater than or equal to 2"),
        ({"segments": 0}, "segments\n.*greater than or equal to 1"),
        ({"projection": 0}, "projection\n.*greater than or equal to 1"),
        ({"merge_share": 1.1}, "merge_share\n.*less than or equal to 1"),
        ({"levels": []}, "levels\n.*at least 1"),
        ({"levels": ["segments"]}, "'segment', 'frame' or 'layer'"),
        ({"calibration": ""}, "calibration\n.*at least 1"),
        ({"method": "uniform", "tau": 0.6}, "tau\n.*an option of hieravid, not of uniform"),
        ({"tau": 0.6, "method": "none"}, "tau\n.*an option of hieravid, not of none"),
        ({"method": "random", "preset": "author"}, "preset\n.*an option of hieravid, not of random"),
        ({"method": "random", "calibration": "x.json"}, "calibration\n.*an option of hieravid, not of random"),
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
    assert isinstance(pruner, Pruner)
    assert pruner.name == name
    assert pruner.needs.last_token_attention == (name == "hieravid")


@pytest.mark.parametrize("name", method_names())
def test_a_method_is_registered_under_its_own_name(name):
    assert make_pruner(PruningConfig(method=name)).name == name
