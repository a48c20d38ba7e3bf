"""The procedural world keeps what its questions rely on."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.tiny.draw import draw_clip
from pipeline.tiny.features import CELLS, CENTRE, COLOUR, NONE, code_matrix, scene_features
from pipeline.tiny.world import (
    COLOURS,
    FRAME_SIZES,
    MAX_OBJECTS,
    MIN_SCENE_SLOTS,
    SEED_RANGES,
    SLOTS,
    VALIDATION_SEEDS,
    make_clip,
)

CLIPS = [make_clip(seed) for seed in VALIDATION_SEEDS[:200]]


def test_seed_ranges_never_meet() -> None:
    ranges = list(SEED_RANGES.values())
    assert all(a.stop <= b.start or b.stop <= a.start for a in ranges for b in ranges if a is not b)


def test_a_clip_is_a_function_of_its_seed() -> None:
    assert make_clip(7) == make_clip(7)
    assert make_clip(7) != make_clip(8)


def test_clips_stay_within_the_limits_of_the_world() -> None:
    for clip in CLIPS:
        assert 4 <= clip.duration_s <= 60
        assert (clip.width, clip.height) in FRAME_SIZES
        assert clip.slots == SLOTS
        assert all(scene.slots >= MIN_SCENE_SLOTS for scene in clip.scenes)
        things = [o for scene in clip.scenes for o in scene.objects]
        assert 1 <= len(things) <= MAX_OBJECTS
        assert len({(o.colour, o.shape) for o in things}) == len(things)


def test_many_objects_are_brief() -> None:
    things = [o for clip in CLIPS for scene in clip.scenes for o in scene.objects]
    brief = np.mean([o.last - o.first + 1 <= 3 for o in things])
    assert 0.4 < brief < 0.8


def test_playing_backwards_turns_directions_and_order() -> None:
    turned = {"left": "right", "right": "left", "up": "down", "down": "up", "still": "still", "flash": "flash"}
    for clip in CLIPS[:50]:
        for scene in clip.scenes:
            for thing, back in zip(scene.objects, scene.reversed().objects, strict=True):
                assert back.motion == turned[thing.motion]
                assert back.first == scene.slots - 1 - thing.last
                assert back.position(back.first) == pytest.approx(thing.position(thing.last))


def test_objects_are_in_the_picture_exactly_in_their_slots() -> None:
    for clip in CLIPS[:20]:
        frames = list(draw_clip(clip, range(SLOTS), 96, 96))
        start = 0
        for scene in clip.scenes:
            for thing in scene.objects:
                for slot in range(scene.slots):
                    x, y = thing.position(slot)
                    pixel = frames[start + slot][min(int(y * 96), 95), min(int(x * 96), 95)].astype(int)
                    near = np.abs(pixel - np.array(COLOURS[thing.colour])).max() < 40
                    assert near == thing.visible(slot), (clip.seed, thing, slot)
            start += scene.slots


def test_token_code_says_what_a_cell_shows() -> None:
    clip = CLIPS[0]
    scene = next(s for s in clip.scenes if s.objects)
    features, owner = scene_features(scene, np.arange(scene.slots), 16 / 9)
    assert features.shape[:2] == owner.shape == (scene.slots, CELLS)
    empty = owner < 0
    assert np.allclose(features[empty][:, NONE.start], 1)
    assert np.allclose(features[empty][:, CENTRE], 0)
    thing = scene.objects[0]
    x, y = thing.position(thing.first)
    cell = int(y * 6) * 6 + int(x * 6)
    assert features[thing.first, cell, COLOUR].argmax() == list(COLOURS).index(thing.colour)
    matrix = code_matrix().numpy()
    back = features @ matrix @ matrix.T / (matrix[0] @ matrix[0])
    assert np.allclose(back, features, atol=1e-4)
