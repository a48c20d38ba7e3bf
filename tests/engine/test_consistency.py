"""Alone, packed, about a shared video or joining late: a request is answered the same, from the same tokens."""

from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.engine import Request, VideoLLM, decode
from pruning import PruningConfig
from tests.engine.checkpoint_families import WRITERS
from tests.engine.videos import make_video

MARGIN = 1e-4
NEW_TOKENS = 4

prompts = st.text("abc defgh?", max_size=60)
# Frames of each video, and what is asked about it.
archives = st.lists(st.tuples(st.integers(1, 40), st.lists(prompts, min_size=1, max_size=3)), min_size=1, max_size=3)


@pytest.fixture(scope="module", params=WRITERS)
def model(request, tmp_path_factory):
    return VideoLLM.load(WRITERS[request.param](tmp_path_factory.mktemp(request.param)), device="cpu", dtype="float32")


class Comparison:
    """Compares answers with those of requests alone; counts those that a close call set apart."""

    def __init__(self):
        self.compared = self.close = 0

    def compare(self, alone, margins, answer):
        """`margins` are by how much each token of the answer alone was ahead of the next best."""
        self.compared += 1
        assert answer.stats.stage_tokens == alone.stats.stage_tokens
        assert answer.stats.stage_layers == alone.stats.stage_layers
        if (answer.trace.alive_until != alone.trace.alive_until).any():
            self.close += 1  # of two tokens as good for a stage another one stayed: from there on texts may differ
            return
        assert answer.stats.segments == alone.stats.segments
        assert (answer.trace.merged_into == alone.trace.merged_into).all()
        pairs = zip(answer.token_ids, alone.token_ids, margins, strict=False)
        differing = [margin for own, other, margin in pairs if own != other]
        if differing:
            assert differing[0] <= MARGIN
            self.close += 1
        else:
            assert answer.token_ids == alone.token_ids
            assert answer.text == alone.text


def answer_alone(model, request, pruning):
    """The answer, and how far each of its tokens was ahead of the next best."""
    margins = []
    choose = decode.choose_tokens

    def watching(logits, samplers):
        best = logits.topk(2, dim=-1).values
        margins.append((best[0, 0] - best[0, 1]).item())
        return choose(logits, samplers)

    with patch.object(decode, "choose_tokens", watching):
        [answer] = model.answer([request], pruning)
    return answer, margins


def answer_late(model, requests, pruning, pauses):
    """Answers to requests that come one by one, while those before are decoding or done."""

    def stream():
        for request in requests:
            yield request
            yield from [None] * pauses

    return sorted(model.answer(stream(), pruning), key=lambda answer: answer.number)


def answer_in_small_packs(model, requests, pruning):
    """Answers with room for about one sequence in a prefill."""
    memory = model._plan_memory()
    with patch.object(model, "_plan_memory", lambda: replace(memory, prefill_tokens=64)):
        return model.answer(requests, pruning)


@pytest.mark.parametrize("retention", [1.0, 0.3])
def test_a_request_is_answered_as_it_is_alone(model, retention):
    comparison = Comparison()
    pruning = PruningConfig(retention=retention)

    @settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(archive=archives, pauses=st.integers(0, 5))
    @example(archive=[(1, ["", "a"]), (40, ["", "what is to be seen here, and since when?"])], pauses=1)
    def compare(archive, pauses):
        apart, shared = [], []
        for number, (frames, questions) in enumerate(archive):
            video = make_video(frames, scenes=1 + frames // 8, seed=frames)
            asked = [Request(video, question, NEW_TOKENS, is_traced=True) for question in questions]
            apart += asked
            shared += [replace(request, video_key=f"video {number}") for request in asked]
        alone = [answer_alone(model, request, pruning) for request in apart]
        for answers in (
            model.answer(apart, pruning),
            model.answer(shared, pruning),
            answer_in_small_packs(model, shared, pruning),
            answer_late(model, shared, pruning, pauses),
        ):
            for (answer, margins), own in zip(alone, answers, strict=True):
                comparison.compare(answer, margins, own)

    compare()
    assert comparison.compared >= 40
    assert comparison.close <= 0.01 * comparison.compared
