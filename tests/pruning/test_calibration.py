import json

import pytest

from pruning import PruningConfig
from pruning.calibration import (
    Calibration,
    CalibrationError,
    apply_calibration,
    parse_calibration,
    read_calibration,
    resolve_options,
)
from pruning.config import PRESETS, option_names, written_out


def calibration(model_hash="a" * 64, **options):
    return Calibration(format=1, model="some-7b", model_hash=model_hash, method="hieravid", options=options)


def write(path, **changes):
    """A calibration file, some of its keys changed; a key changed to None is left out."""
    content = {**calibration(beta=0.3).model_dump(mode="json"), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def resolve(config, own=None, model_hash="a" * 64):
    return resolve_options(config, own, "some-7b", lambda: model_hash)


def test_written_out_wins_over_the_calibration_and_that_over_the_preset_and_the_default():
    chosen = calibration(max_block=64, beta=0.2, tau=0.5)
    config = apply_calibration(PruningConfig(preset="author", tau=0.9, retention=0.3), chosen)
    assert (config.tau, config.beta, config.max_block) == (0.9, 0.2, 64)
    assert (config.merge_across_segments, config.gamma, config.retention) == (True, 0.6, 0.3)


def test_without_a_preset_a_calibration_starts_from_the_field_defaults():
    config = apply_calibration(PruningConfig(), calibration(beta=0.2))
    assert (config.beta, config.merge_across_segments, config.max_block) == (0.2, False, 1024)


@pytest.mark.parametrize("preset", [None, "author"])
def test_without_calibration_and_preset_options_are_the_authors(preset):
    config = apply_calibration(PruningConfig(preset=preset), None)
    assert {name: getattr(config, name) for name in PRESETS["author"]} == PRESETS["author"]


@pytest.mark.parametrize("chosen", [None, calibration(beta=0.2, levels=("segment",))])
def test_an_applied_config_says_all_it_needs(chosen):
    config = apply_calibration(PruningConfig(preset="default", gamma=0.5), chosen)
    assert (config.preset, config.calibration) == (None, None)
    assert set(written_out(config)) == set(option_names())
    assert apply_calibration(config, calibration(beta=0.9, gamma=0.9)) == config
    assert apply_calibration(PruningConfig(**config.model_dump()), None) == config


def test_other_methods_have_nothing_to_calibrate(tmp_path):
    config = PruningConfig(method="uniform", retention=0.3)
    assert apply_calibration(config, calibration(beta=0.2)) is config
    own = write(tmp_path / "calibration.json", format=7)
    assert resolve(config, own) is config


def test_the_model_s_own_file_is_used_if_nothing_else_is_named(tmp_path):
    own = write(tmp_path / "calibration.json")
    other = write(tmp_path / "other.json", options={"beta": 0.7})
    assert resolve(PruningConfig(), own).beta == 0.3
    assert resolve(PruningConfig(beta=0.5), own).beta == 0.5
    assert resolve(PruningConfig(preset="author"), own).beta == 0.4
    assert resolve(PruningConfig(calibration=None), own) == apply_calibration(PruningConfig(), None)
    assert resolve(PruningConfig(calibration=str(other)), own).beta == 0.7
    assert resolve(PruningConfig(calibration=str(other), preset="author"), own).merge_across_segments
    assert resolve(PruningConfig()) == apply_calibration(PruningConfig(preset="author"), None)


def test_the_hash_is_asked_for_only_where_there_is_a_file():
    def not_needed():
        raise AssertionError

    resolve_options(PruningConfig(), None, "m", not_needed)
    resolve_options(PruningConfig(preset="author"), None, "m", not_needed)


def test_a_calibration_of_another_model_is_refused(tmp_path):
    own = write(tmp_path / "calibration.json")
    for config in (PruningConfig(), PruningConfig(calibration=str(own))):
        with pytest.raises(
            CalibrationError, match=r"made for the model some-7b \(aaaaaaaaaaaa\), this one is some-7b \(bbb"
        ):
            resolve(config, own, "b" * 64)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": 2}, "format: .*1"),
        ({"format": None}, "format: .*required"),
        ({"model_hash": None}, "model_hash: .*required"),
        ({"method": "uniform"}, "method: .*hieravid"),
        ({"options": {"bta": 0.3}}, "options: .*bta is none of levels, tau, beta"),
        ({"options": {"retention": 0.3}}, "options: .*retention is none of"),
        ({"options": {"preset": "author"}}, "options: .*preset is none of"),
        ({"options": {"beta": 3}}, "options.beta: .*less than or equal to 1"),
        ({"options": {"levels": []}}, "options.levels: .*at least 1"),
        ({"score": 1}, "score: .*not permitted"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path, changes, told):
    path = write(tmp_path / "c.json", **changes)
    with pytest.raises(CalibrationError, match=f"c.json: {told}") as caught:
        read_calibration(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1, "format'])
def test_a_broken_file_is_refused(text):
    with pytest.raises(CalibrationError, match=r"^x\.json: "):
        parse_calibration(text, "x.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CalibrationError, match=r"none\.json: No such file"):
        read_calibration(tmp_path / "none.json")


def test_a_file_reads_back_as_it_was_written(tmp_path):
    chosen = calibration(beta=0.25, segments=None, levels=("segment", "layer"))
    path = tmp_path / "c.json"
    path.write_text(chosen.model_dump_json())
    assert read_calibration(path) == chosen
