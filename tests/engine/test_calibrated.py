"""Answers are pruned as the model's own calibration says, where the caller says nothing else."""

import json
import shutil

import pytest

from pipeline.engine import Request, VideoLLM
from pruning import PruningConfig
from pruning.calibration import CalibrationError
from tests.engine.videos import make_video

OPTIONS = {"shape": "geometric", "gamma": 0.3}


@pytest.fixture(scope="module")
def calibrated(grouped_folder, tmp_path_factory):
    folder = shutil.copytree(grouped_folder, tmp_path_factory.mktemp("calibrated") / "model")
    model_hash = VideoLLM.load(folder, device="cpu").info.model_hash
    content = {"format": 1, "model": "m", "model_hash": model_hash, "method": "hieravid", "options": OPTIONS}
    (folder / "calibration.json").write_text(json.dumps(content))
    return folder


def stage_tokens(llm, **options):
    [answer] = llm.answer([Request(make_video(4), "what", max_new_tokens=1)], PruningConfig(retention=0.3, **options))
    return answer.stats.stage_tokens


def test_the_models_own_calibration_completes_the_options(calibrated, llm):
    model = VideoLLM.load(calibrated, device="cpu")
    assert stage_tokens(model) == stage_tokens(llm, **OPTIONS) != stage_tokens(llm)
    assert stage_tokens(model, gamma=0.9) == stage_tokens(llm, shape="geometric", gamma=0.9)
    assert stage_tokens(model, calibration=None) == stage_tokens(model, preset="author") == stage_tokens(llm)


def test_a_calibration_of_another_model_is_refused(calibrated, folders):
    other = VideoLLM.load(folders["one-kv-head-tied"], device="cpu")
    with pytest.raises(CalibrationError, match="made for the model m"):
        stage_tokens(other, calibration=str(calibrated / "calibration.json"))
