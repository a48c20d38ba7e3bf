"""Pixels are those of the Pillow processor that the published models were trained with."""

import json

import numpy as np
import pytest
import torch
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from pipeline import resize
from pipeline.engine import ModelError
from pipeline.engine.preprocess import FramePreprocessor
from tests.engine.videos import make_video

SIDE = 96
SIZES = [(360, 640), (640, 360), (240, 320), (50, 70), (97, 33), (96, 200), (300, 96), (33, 97), (120, 100), (1, 1)]
CONFIG = {
    "image_mean": [0.5, 0.45, 0.4],
    "image_std": [0.5, 0.3, 0.25],
    "rescale_factor": 1 / 255,
    "resample": 3,
    "size": {"height": SIDE, "width": SIDE},
}


def write_config(folder, **changes):
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(params=["cpu kernel", "matrix products"])
def each_resize_path(request, monkeypatch):
    """Both implementations run on the CPU: the one for it, and the one that accelerators take."""
    if request.param == "matrix products":
        monkeypatch.setattr(resize, "_resize_pass_cpu", resize._resize_pass_matrix)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("content", ["noise", "scene"])
def test_pixels_equal_the_pillow_processor(tmp_path, each_resize_path, size, content):
    if content == "noise":
        frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    else:
        frames = make_video(3, *(max(side, 8) for side in size), seed=3)
    preprocessor = FramePreprocessor.from_folder(write_config(tmp_path))
    own = preprocessor(torch.from_numpy(frames), torch.float32)
    reference = SiglipImageProcessorPil(**CONFIG)(
        list(frames), input_data_format="channels_last", return_tensors="pt"
    ).pixel_values
    assert own.shape == reference.shape
    levels = torch.tensor(CONFIG["image_std"]).view(3, 1, 1) * 255
    difference = ((own - reference) * levels).abs()
    assert difference.max() < 2.01
    assert (difference < 1.01).float().mean() >= 0.999


def test_frames_of_the_target_size_are_not_resized():
    frames = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    assert resize.resize_frames(frames, SIDE, SIDE) is frames


def test_other_devices_do_not_get_the_cpu_kernel(monkeypatch):
    def cpu_only(frames, dim, size):
        raise AssertionError("the uint8 kernel exists on the CPU only")

    monkeypatch.setattr(resize, "_resize_pass_cpu", cpu_only)
    frames = torch.empty(2, 3, 40, 60, dtype=torch.uint8, device="meta")
    assert resize.resize_frames(frames, SIDE, SIDE).shape == (2, 3, SIDE, SIDE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"shortest_edge": 96}}, "height and width"),
        ({"resample": 2}, "bicubic"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"do_normalize": False}, "do_normalize"),
        ({"image_mean": None}, "image_mean"),
    ],
)
def test_settings_that_are_not_implemented_are_refused(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        FramePreprocessor.from_folder(write_config(tmp_path, **changes))


def test_a_folder_without_processor_settings_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no preprocessor_config\.json"):
        FramePreprocessor.from_folder(tmp_path)


def test_the_video_processor_s_own_settings_come_first(tmp_path):
    write_config(tmp_path)
    video = {**CONFIG, "size": {"height": 48, "width": 48}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"video_processor": video}))
    assert FramePreprocessor.from_folder(tmp_path).height == 48
