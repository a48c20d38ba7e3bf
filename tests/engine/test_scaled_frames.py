"""Frames that were scaled where they were decoded give the model what the frames themselves would."""

import numpy as np
import pytest
import torch

from pipeline.engine import VideoLLM, model_info
from pipeline.resize import fit_frame
from tests.engine.checkpoint_families import WRITERS
from tests.engine.videos import make_video

SIZES = [(90, 160), (160, 90), (240, 320), (20, 31), (35, 35), (200, 30), (3, 500)]


@pytest.fixture(scope="module", params=[*WRITERS, "builtin:tiny"])
def source(request, tmp_path_factory):
    if request.param == "builtin:tiny":
        return request.param
    return str(WRITERS[request.param](tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def family(source):
    return VideoLLM.load(source, device="cpu", dtype="float32")._family


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scaling_first_changes_no_bit_of_what_the_model_sees(source, family, size):
    frames = make_video(5, *size, seed=1) if min(size) > 8 else _noise(5, *size)
    target = model_info(source, device="cpu").frame_size.of(*size)
    scaled = np.stack([fit_frame(frame, *target) for frame in frames])
    assert scaled.shape == (5, *target, 3)
    assert torch.equal(family.preprocess(torch.from_numpy(scaled)), family.preprocess(torch.from_numpy(frames)))
    assert family.grid(5, target) == family.grid(5, size)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_scaled_frames_are_not_resized_again(source, family, size, monkeypatch):
    target = model_info(source, device="cpu").frame_size.of(*size)
    monkeypatch.setattr("pipeline.resize._resize_pass_cpu", None)
    family.preprocess(torch.from_numpy(_noise(2, *target)))


def _noise(frames, height, width):
    return np.random.default_rng(height).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
