"""Both sides of the benchmark do the same work: same weights, same frames, same first token."""

import pytest
import torch

from pipeline.benchmark.engine.dense import Dense
from pipeline.benchmark.engine.ours import Engine
from pipeline.benchmark.engine.shapes import SHAPES
from pipeline.benchmark.engine.subject import Subject
from pipeline.benchmark.engine.video import make_video
from tests.benchmark.micro_shapes import MICRO, micro_subject


def videos(subject, count=2, segments=2):
    step = subject.family.frames_per_step
    shape = subject.shape
    return [make_video(shape.frames, segments, shape.frame_size, seed, step) for seed in range(count)]


@pytest.mark.parametrize("name", MICRO)
def test_unpruned_both_sides_say_the_same(name):
    subject = micro_subject(name)
    shown = videos(subject)
    dense, ours = Dense(subject)(shown, 6), Engine(subject)(shown, 1.0, 6)
    assert dense.token_ids == ours.token_ids
    assert dense.token_ids[0] != dense.token_ids[1]
    assert [plan.num_tokens for plan in dense.plans] == [plan.num_tokens for plan in ours.plans]
    assert dense.text_tokens == ours.text_tokens


def test_the_built_in_model_says_the_same_and_does_not_stop():
    subject = Subject.load(SHAPES["tiny"], "builtin:tiny", torch.float32, torch.device("cpu"))
    shown = videos(subject, count=1)
    dense, ours = Dense(subject)(shown, 40), Engine(subject)(shown, 1.0, 40)
    assert dense.token_ids == ours.token_ids
    assert len(dense.token_ids[0]) == 40


@pytest.mark.parametrize("name", MICRO)
def test_a_phase_takes_its_part_of_the_whole(name):
    subject = micro_subject(name)
    for run in (Dense(subject)(videos(subject), 4), Engine(subject)(videos(subject), 0.3, 4)):
        phases = (run.vision_ms, run.prune_ms or 0.0, run.prefill_ms, run.decode_ms)
        assert min(run.vision_ms, run.prefill_ms, run.decode_ms) > 0
        assert 0.2 * run.total_ms < sum(phases) <= 1.001 * run.total_ms


def test_one_new_token_takes_no_decoding_step():
    subject = micro_subject("llava-onevision")
    dense = Dense(subject)(videos(subject), 1)
    assert (dense.decode_ms, dense.decode_steps) == (0, 0)
    assert dense.token_ids == Engine(subject)(videos(subject), 1.0, 1).token_ids


def test_what_decoding_reads_leaves_out_the_table_of_embeddings():
    subject = micro_subject("llava-onevision")
    language_model = subject.model.model.language_model
    numbers = (
        sum(weight.numel() for weight in language_model.layers.parameters()) + subject.model.lm_head.weight.numel()
    )
    assert subject.read_bytes() == 4 * numbers
