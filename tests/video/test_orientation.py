from fractions import Fraction

import numpy as np
import pytest

from pipeline.frame_size import FixedSize
from pipeline.resize import fit_frame
from pipeline.video.decode import decode_frames
from pipeline.video.sampling import Sampling
from tests.video.samples import read_number, write_coded


def decode(path, frames=4, **kwargs):
    return decode_frames(path, Sampling(frames, "uniform"), **kwargs)


@pytest.mark.parametrize("frames", [4, 8], ids=["some", "all"])
@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_pictures_are_turned_clockwise_as_the_file_asks(tmp_path, frames, rotation, name):
    upright = decode(write_coded(tmp_path / f"upright-{name}", frames=8), frames)
    turned = decode(write_coded(tmp_path / name, frames=8, rotation=rotation), frames)
    assert np.array_equal(turned.frames, np.rot90(upright.frames, k=-rotation // 90, axes=(1, 2)))
    assert (turned.info.height, turned.info.width) == turned.frames.shape[1:3]


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_pixels_that_are_not_square_are_made_square(tmp_path, backend):
    square = decode(write_coded(tmp_path / "square.mp4", frames=8), backend=backend)
    wide = decode(write_coded(tmp_path / "wide.mp4", frames=8, pixel_aspect=Fraction(4, 3)), backend=backend)
    assert (wide.info.width, wide.info.height) == (85, 48)
    assert wide.frames.shape == (4, 48, 85, 3)
    assert [read_number(frame) for frame in wide.frames] == [read_number(frame) for frame in square.frames]


def test_wide_pixels_of_a_turned_picture_make_it_high(tmp_path):
    path = write_coded(tmp_path / "a.mp4", frames=8, rotation=90, pixel_aspect=Fraction(4, 3))
    assert decode(path).frames.shape == (4, 85, 48, 3)


def test_one_resize_makes_pixels_square_and_the_size_right(tmp_path):
    wide = write_coded(tmp_path / "wide.mp4", frames=8, pixel_aspect=Fraction(4, 3))
    square = decode(write_coded(tmp_path / "square.mp4", frames=8))
    sized = decode(wide, frame_size=FixedSize(30, 40))
    assert np.array_equal(sized.frames, np.stack([fit_frame(frame, 30, 40) for frame in square.frames]))
