"""Clips composed from a pool of rendered scenes are as true as those that are drawn."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.tiny.features import CELLS, COLOUR, COLOUR_INDEX, code_matrix
from pipeline.tiny.language import appearances
from pipeline.tiny.pool import Pool, make_crowds, make_pool
from pipeline.tiny.samples import DENSE, IGNORE, PoolClips, choose_tokens, dense_labels, drawn_clip
from pipeline.tiny.world import MAX_OBJECTS, MOTIONS, TRAIN_SEEDS


@pytest.fixture(scope="module")
def pool() -> Pool:
    return make_pool(TRAIN_SEEDS[:40], workers=1)


def test_composed_clips_exist_for_every_frame_count_and_match_their_tokens(pool: Pool) -> None:
    features = pool.features.astype(np.float32)
    clips = PoolClips(pool, features @ code_matrix().numpy())
    rng = np.random.default_rng(0)
    for frames in (3, 5, 8, 13, 14, 16, 24):
        scenes, tokens, owners = clips(rng, frames)
        assert sum(s.slots for s in scenes) == frames == len(tokens)
        items = appearances(scenes)
        assert len({a.name for a in items}) == len(items) <= MAX_OBJECTS
        back = tokens @ code_matrix().numpy().T
        things = [o for s in scenes for o in s.objects]
        for number, thing in enumerate(things):
            mine = back[owners == number][:, COLOUR]
            assert len(mine)
            assert (mine.argmax(-1) == COLOUR_INDEX[thing.colour]).all()


def test_dense_labels_say_what_is_known_by_then() -> None:
    rng = np.random.default_rng(4)
    for _ in range(10):
        scenes, _, owners = drawn_clip(rng, 16)
        labels = dense_labels(scenes, owners)
        items = appearances(scenes)
        assert labels.shape == (16, CELLS, len(DENSE))
        assert labels[-1, :, 1].max() == len(items)
        assert labels[-1, :, 2].max() == len(scenes) - 1
        ranked = labels[..., 3][owners >= 0]
        assert set(ranked.tolist()) == set(range(1, len(items) + 1))
        moving = labels[..., 0][labels[..., 0] != IGNORE]
        assert set(moving.tolist()) <= set(range(len(MOTIONS)))


def test_focus_keeps_the_tokens_of_objects() -> None:
    rng = np.random.default_rng(4)
    _, _, owners = drawn_clip(rng, 16)
    chosen = choose_tokens(rng, owners, 200, focus=True)
    assert set(np.flatnonzero(owners.reshape(-1) >= 0)) <= set(chosen.tolist())
    assert len(set(chosen.tolist())) == 200
    assert (np.diff(chosen) > 0).all()


def test_crowds_have_many_objects_in_one_picture() -> None:
    crowds = make_crowds(TRAIN_SEEDS[:20], workers=1)
    assert crowds.frames.shape[0] == 20
    shown = (crowds.features[..., COLOUR].astype(np.float32).sum(-1) > 0).mean()
    assert shown > 0.15
