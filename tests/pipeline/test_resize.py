"""A frame scaled where it was decoded is the frame that the engine's resize makes."""

import warnings

import numpy as np
import pytest
import torch

from pipeline.resize import fit_frame, resize_frames

TARGETS = [(96, 96), (56, 140), (7, 300), (120, 160), (2, 3), (1, 9), (9, 1)]
SHAPES = [(360, 640), (120, 160), (31, 20), (97, 1), (1, 1), (5, 400)]


def noise(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_frame_alone_is_the_frame_among_others(shape, target):
    frames = noise(3, *shape, 3)
    together = resize_frames(torch.from_numpy(frames).permute(0, 3, 1, 2), *target).permute(0, 2, 3, 1).numpy()
    for frame, expected in zip(frames, together, strict=True):
        fitted = fit_frame(frame, *target)
        assert (fitted.dtype, fitted.shape) == (np.uint8, (*target, 3))
        assert fitted.flags.c_contiguous
        np.testing.assert_array_equal(fitted, expected)


def test_a_frame_of_the_size_is_returned_as_it_is():
    frame = noise(40, 60, 3)[::-1]
    assert fit_frame(frame, 40, 60) is frame


@pytest.mark.parametrize("turns", range(4))
def test_a_turned_view_is_resized_as_its_copy(turns):
    """rot90 hands out views with backward strides, which torch does not take."""
    turned = np.rot90(noise(45, 80, 3), turns)
    np.testing.assert_array_equal(fit_frame(turned, 32, 48), fit_frame(turned.copy(), 32, 48))


def test_a_read_only_frame_is_resized_without_a_warning_and_left_alone():
    frame = noise(45, 80, 3)
    frame.flags.writeable = False
    before = frame.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit_frame(frame, 32, 48)
    np.testing.assert_array_equal(fitted, fit_frame(before, 32, 48))
    np.testing.assert_array_equal(frame, before)
