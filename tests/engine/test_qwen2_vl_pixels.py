"""Qwen2-VL's patches are those of the Pillow processor, for two frames a step."""

import json

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from pipeline import resize
from pipeline.engine import ModelError
from pipeline.engine.families.qwen2_vl_pixels import PatchPreprocessor
from tests.engine.videos import make_video

CONFIG = {
    "min_pixels": 4 * 28 * 28,
    "max_pixels": 30 * 28 * 28,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48, 0.45, 0.4],
    "image_std": [0.27, 0.26, 0.28],
}
SIZES = [(90, 160), (160, 90), (240, 320), (20, 31), (56, 84), (200, 30), (14, 42)]


def write_config(folder, name="preprocessor_config.json", section=None, **changes):
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / name).write_text(json.dumps({section: config} if section else config))
    return folder


@pytest.fixture
def preprocessor(tmp_path):
    return PatchPreprocessor.from_folder(write_config(tmp_path))


@pytest.mark.parametrize("path", ["cpu kernel", "matrix products"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_patches_equal_the_pillow_processor(preprocessor, monkeypatch, path, size):
    if path == "matrix products":  # what accelerators take
        monkeypatch.setattr(resize, "_resize_pass_cpu", resize._resize_pass_matrix)
    frames = make_video(4, *size, seed=3)
    own = preprocessor(torch.from_numpy(frames), torch.float32)
    reference = Qwen2VLImageProcessorPil(**CONFIG)(
        list(frames), input_data_format="channels_last", return_tensors="pt", do_convert_rgb=False
    )
    rows, columns = (int(side) // 2 for side in reference.image_grid_thw[0, 1:])
    assert own.shape == (2, rows, columns, 4, 3 * 2 * 14 * 14)
    # an image fills both places in time of its patches; a step of the video takes one from each of its frames
    images = reference.pixel_values.view(4, rows * columns * 4, 3, 2, -1)
    expected = torch.stack((images[0::2, :, :, 0], images[1::2, :, :, 1]), dim=3)
    levels = 255 * torch.tensor(CONFIG["image_std"])[:, None, None]
    difference = ((own.view(2, -1, 3, 2, 14 * 14) - expected) * levels).abs()
    assert difference.max() < 2.01
    assert (difference < 1.01).float().mean() >= 0.999


def test_an_incomplete_last_step_repeats_its_frame(preprocessor):
    frames = torch.from_numpy(make_video(5))
    odd = preprocessor(frames, torch.float32)
    assert torch.equal(odd, preprocessor(torch.cat((frames, frames[-1:])), torch.float32))
    assert odd.shape[0] == 3


def test_rows_do_not_depend_on_how_a_video_is_cut(preprocessor):
    frames = torch.from_numpy(make_video(7, 90, 160))
    whole = preprocessor(frames, torch.float32)
    assert torch.equal(whole, torch.cat([preprocessor(frames[a : a + 2], torch.float32) for a in range(0, 7, 2)]))


@pytest.mark.parametrize(
    ("limits", "longest"), [((4, 30), 30), ((1, 768), 100), ((128, 768), 100), ((16, 64), 8)], ids=str
)
def test_the_grid_is_that_of_the_processor_s_smart_resize(tmp_path, limits, longest):
    """Up to the ratio of sides at which its own result would change in a second resize, or break its limits."""
    least, most = (tokens * 28 * 28 for tokens in limits)
    preprocessor = PatchPreprocessor.from_folder(write_config(tmp_path, min_pixels=least, max_pixels=most))
    for height, width in np.random.default_rng(0).integers(1, 2000, (300, 2)).tolist():
        if max(height, width) <= longest * min(height, width):
            expected = smart_resize(height, width, 28, least, most)
            assert preprocessor.token_grid(height, width) == (expected[0] // 28, expected[1] // 28)


def test_where_a_second_resize_would_change_the_processor_s_result_the_grid_is_the_last_one(tmp_path):
    least, most = 16 * 784, 17 * 784
    preprocessor = PatchPreprocessor.from_folder(write_config(tmp_path, min_pixels=least, max_pixels=most))
    assert smart_resize(87, 869, 28, least, most) == (28, 13 * 28)  # 13 tokens, though 16 are the least
    assert preprocessor.token_grid(87, 869) == preprocessor.token_grid(28, 13 * 28) == (1, 10)


@pytest.mark.parametrize(
    ("tokens", "grid"), [(768, (24, 32)), (720, (24, 30)), (17, (1, 17)), (1, (1, 1)), (211, (14, 15))]
)
def test_the_largest_grid_fills_the_budget_and_is_reached(tmp_path, tokens, grid):
    """211 is prime, and a frame of 1 x 211 tokens would be too narrow."""
    preprocessor = PatchPreprocessor.from_folder(write_config(tmp_path, min_pixels=1, max_pixels=tokens * 28 * 28 + 5))
    assert preprocessor.largest_grid() == grid
    assert preprocessor.token_grid(28 * grid[0], 28 * grid[1]) == grid


def test_a_video_processor_s_own_limits_come_first(tmp_path):
    write_config(tmp_path)
    size = {"shortest_edge": 6 * 784, "longest_edge": 50 * 784}
    write_config(tmp_path, "processor_config.json", "video_processor", min_pixels=None, max_pixels=None, size=size)
    preprocessor = PatchPreprocessor.from_folder(tmp_path)
    assert (preprocessor.min_pixels, preprocessor.max_pixels) == (6 * 784, 50 * 784)


def test_an_image_processor_s_limits_hold_up_to_what_videos_had_in_training(tmp_path):
    published = PatchPreprocessor.from_folder(write_config(tmp_path, min_pixels=3136, max_pixels=12845056))
    assert (published.min_pixels, published.max_pixels) == (3136, 768 * 784)
    assert published.token_grid(1080, 1920) == (20, 36)
    silent = PatchPreprocessor.from_folder(write_config(tmp_path, min_pixels=None, max_pixels=None))
    assert (silent.min_pixels, silent.max_pixels) == (128 * 784, 768 * 784)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": 2}, "resample 2 is not supported, only 3"),
        ({"do_resize": False}, "do_resize False"),
        ({"do_normalize": False}, "do_normalize False"),
        ({"cap_pixels_per_frame": True}, "cap_pixels_per_frame True"),
        ({"patch_size": [14, 14]}, "patch_size must be a whole number"),
        ({"merge_size": 0}, "merge_size must be a whole number"),
        ({"min_pixels": 40 * 784}, "at least 31360 and at most 23520 pixels"),
        ({"min_pixels": 100, "max_pixels": 700}, "at most 700 pixels are impossible in tokens of 784"),
        ({"max_pixels": "many"}, "max_pixels must be a whole number"),
        ({"size": 224}, "size must name"),
        ({"image_mean": None}, "image_mean"),
    ],
)
def test_settings_that_are_not_implemented_are_refused(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        PatchPreprocessor.from_folder(write_config(tmp_path, **changes))


def test_a_folder_without_processor_settings_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no preprocessor_config\.json"):
        PatchPreprocessor.from_folder(tmp_path)
