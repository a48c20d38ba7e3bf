"""The vision tower works in bounded calls on rows of any videos, and nobody sees how they were cut."""

import pytest
import torch

from pipeline.engine import VideoLLM, vision
from tests.engine.checkpoints_qwen2_vl import SHAPES, write_checkpoint
from tests.engine.videos import make_video

# Two sizes whose grids differ, by turns, and one that is resized to the first one's grid: 2 x 4 and 4 x 2 tokens.
SIZES = [(16, 32), (32, 16), (16, 32), (32, 16), (17, 33)]
FRAMES = [3, 1, 8, 5, 2]
ROW = 8 * 4  # patches of one step


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A Qwen2-VL: the shape of its rows depends on the size of the frames, and a row takes two frames."""
    return VideoLLM.load(write_checkpoint(tmp_path_factory.mktemp("model"), SHAPES["grouped"]), device="cpu")._family


@pytest.fixture(scope="module")
def videos():
    return [make_video(n, *size, seed=n) for n, size in zip(FRAMES, SIZES, strict=True)]


@pytest.fixture
def calls(family, monkeypatch):
    """What went through the vision tower, and what was preprocessed at once: lists of rows and of frames."""
    rows, frames = [], []
    encode, preprocess = family.encode, family.preprocess
    monkeypatch.setattr(family, "encode", lambda pixels, *options: rows.append(pixels) or encode(pixels, *options))
    monkeypatch.setattr(family, "preprocess", lambda part: frames.append(part) or preprocess(part))
    return rows, frames


@torch.inference_mode()
@pytest.mark.parametrize("patches", [1, 3 * ROW, 5 * ROW + 7, None])
@pytest.mark.parametrize("source_bytes", [1, 3 * 16 * 32 * 5, 2**26])
def test_cuts_change_nothing(family, videos, monkeypatch, patches, source_bytes):
    alone = [vision.encode_videos(family, [video], with_attention=True)[0] for video in videos]
    monkeypatch.setattr(vision, "_SOURCE_BYTES", source_bytes)
    together = vision.encode_videos(family, videos, with_attention=True, patches=patches)
    for frames, (tokens, attention), (own_tokens, own_attention) in zip(FRAMES, together, alone, strict=True):
        assert tokens.shape == ((frames + 1) // 2 * 8, 64)
        torch.testing.assert_close(tokens, own_tokens, atol=1e-5, rtol=0)
        torch.testing.assert_close(attention, own_attention, atol=1e-7, rtol=1e-4)
    assert all(attention is None for _, attention in vision.encode_videos(family, videos))


def test_rows_of_one_shape_fill_calls_whosever_they_are(family, videos, calls):
    rows, _ = calls
    vision.encode_videos(family, videos, patches=3 * ROW + 5)
    # rows of the 16 x 32 videos: 2 + 4 + 1, of the 32 x 16 ones: 1 + 3
    assert sorted(len(call) for call in rows) == [1, 1, 3, 3, 3]
    assert [tuple(call.shape[1:3]) for call in rows] in ([(4, 2)] * 2 + [(2, 4)] * 3, [(2, 4)] * 3 + [(4, 2)] * 2)


def test_a_row_above_the_budget_goes_alone(family, videos, calls):
    rows, _ = calls
    vision.encode_videos(family, videos, patches=ROW - 1)
    assert [len(call) for call in rows] == [1] * 11


def test_a_long_video_is_preprocessed_in_whole_steps(family, calls, monkeypatch):
    _, frames = calls
    video = make_video(11, 16, 32)
    monkeypatch.setattr(vision, "_SOURCE_BYTES", 5 * video[0].nbytes)
    vision.encode_videos(family, [video])
    assert [len(part) for part in frames] == [4, 4, 3]
    frames.clear()
    monkeypatch.setattr(vision, "_SOURCE_BYTES", 2**26)
    vision.encode_videos(family, [video], patches=ROW)  # four rows of 8 tokens, as though each were a patch
    assert [len(part) for part in frames] == [8, 3]


def test_no_videos_no_tokens(family):
    assert vision.encode_videos(family, []) == []
