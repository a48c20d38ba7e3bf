"""Captions, questions and their scores agree with the truth of the clips."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.tiny.language import (
    LETTERS,
    NUMBERS,
    all_questions,
    appearances,
    caption,
    caption_f1,
    caption_facts,
    lettered,
    sample_questions,
)
from pipeline.tiny.world import SHAPES, VALIDATION_SEEDS, make_clip

CLIPS = [make_clip(seed) for seed in VALIDATION_SEEDS[:100]]


def test_a_caption_states_exactly_the_facts_of_its_clip() -> None:
    for clip in CLIPS:
        facts = caption_facts(caption(clip.scenes))
        items = appearances(clip.scenes)
        assert {f[1] for f in facts if f[0] == "object"} == {a.name for a in items}
        assert {f[1:] for f in facts if f[0] == "scene"} == {(a.name, str(a.scene)) for a in items}
        assert caption_f1(caption(clip.scenes), caption(clip.scenes)) == 1.0


@pytest.mark.parametrize(
    ("said", "lower", "upper"),
    [
        ("a red circle moves left.", 0.999, 1.001),
        ("a red circle moves right.", 0.7, 0.9),
        ("a red circle moves left, a blue square flashes.", 0.5, 0.8),
        ("a green cross stays still. then a white square flashes.", 0.0, 0.001),
        ("", 0.0, 0.001),
    ],
)
def test_caption_f1_falls_with_wrong_missing_and_invented_facts(said: str, lower: float, upper: float) -> None:
    assert lower <= caption_f1(said, "a red circle moves left.") <= upper


def test_order_of_objects_counts() -> None:
    reference = "a red circle flashes. then a blue square flashes."
    assert caption_f1("a blue square flashes. then a red circle flashes.", reference) < 0.9


def test_answers_are_true() -> None:
    for clip in CLIPS:
        items = appearances(clip.scenes)
        names = {a.name: a for a in items}
        for q in all_questions(clip.scenes, np.random.default_rng(clip.seed)):
            if q.kind == "presence":
                assert (q.answer == "yes") == (q.text.removeprefix("is there a ") in names)
            elif q.kind == "colour":
                found = [a for a in items if a.thing.shape == q.text.split()[-1]]
                assert [a.thing.colour for a in found] == [q.answer]
            elif q.kind == "scenes":
                assert q.answer == NUMBERS[len(clip.scenes)]
            elif q.kind == "direction":
                name = " ".join(q.text.split()[4:6])
                said = q.options[LETTERS.index(q.answer)] if q.options else q.answer
                assert names[name].thing.motion == said
            elif q.kind == "count" and any(q.text.split()[2].startswith(s) for s in SHAPES):
                shape = next(s for s in SHAPES if q.text.split()[2].startswith(s))
                assert q.answer == NUMBERS[sum(a.thing.shape == shape for a in items)]
            elif q.kind == "which":
                assert [o for o in q.options if o in names] == [q.options[LETTERS.index(q.answer)]]


def test_sampled_questions_differ_and_cover_many_kinds() -> None:
    kinds = set()
    for clip in CLIPS:
        questions = sample_questions(clip.scenes, np.random.default_rng(clip.seed), 5)
        assert len({(q.text, q.options) for q in questions}) == len(questions) == 5
        assert len({q.kind for q in questions}) >= 4
        kinds |= {q.kind for q in questions}
    assert len(kinds) >= 12


def test_lettered_questions_ask_the_same_with_the_right_letter() -> None:
    for clip in CLIPS[:30]:
        rng = np.random.default_rng(clip.seed)
        for q in all_questions(clip.scenes, rng):
            asked = lettered(q, rng)
            if asked is not q:
                assert asked.options[LETTERS.index(asked.answer)] == q.answer
                assert len(set(asked.options)) == len(asked.options) >= 2
