"""A model's own calibration decides how its videos are pruned, unless the caller says otherwise."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.engine import Request, VideoLLM, model_info
from pruning import PruningConfig
from pruning.calibration import Calibration
from tests.engine.videos import make_video

OPTIONS = {"shape": "geometric", "gamma": 0.3, "beta": 0.9}


def write_calibration(path: Path, model_hash: str) -> None:
    calibration = Calibration(
        format=1, model="small", model_hash=model_hash, method="hieravid", options=OPTIONS, evidence={}
    )
    path.write_text(calibration.model_dump_json())


@pytest.fixture
def folder(grouped_folder, tmp_path):
    return Path(shutil.copytree(grouped_folder, tmp_path / "small"))


@pytest.fixture
def stages(folder):
    """The stage tokens that a config leads to on the model in `folder`."""

    def run(**options):
        llm = VideoLLM.load(folder, device="cpu", dtype="float32")
        request = Request(make_video(6), "what", max_new_tokens=1)
        [answer] = llm.answer([request], PruningConfig(method="hieravid", retention=0.3, **options))
        return answer.stats.stage_tokens

    return run


def test_the_model_s_own_calibration_is_the_default(stages, folder):
    without = stages()
    assert without == stages(preset="author")
    write_calibration(folder / "calibration.json", model_info(str(folder)).model_hash)
    calibrated = stages()
    assert calibrated == stages(calibration=None, preset="default", **OPTIONS) != without
    assert stages(preset="author") == stages(calibration=None) == without
    assert stages(shape="author") == stages(preset="default")


def test_a_calibration_can_be_named(stages, folder, tmp_path):
    write_calibration(tmp_path / "elsewhere.json", model_info(str(folder)).model_hash)
    assert stages(calibration=str(tmp_path / "elsewhere.json")) == stages(preset="default", **OPTIONS)


@pytest.mark.parametrize("options", [{}, {"calibration": "FILE"}])
def test_a_calibration_of_another_model_is_refused(stages, folder, options):
    path = folder / "calibration.json"
    write_calibration(path, "0" * 64)
    with pytest.raises(ValueError, match="made for the model small \\(000000000000\\)"):
        stages(**{name: str(path) for name in options})
    assert stages(preset="author") == stages(calibration=None)


def test_the_calibration_is_no_part_of_the_model(folder):
    before = model_info(str(folder))
    write_calibration(folder / "calibration.json", before.model_hash)
    assert model_info(str(folder)) == replace(before, calibration=folder / "calibration.json")
