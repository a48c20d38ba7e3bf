"""Teacher forcing: how likely a given answer is, through the pruned model's own decoding."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from pipeline.engine import Failure, Request
from pruning import PruningConfig
from tests.engine.recording import answer_traced
from tests.engine.reference import dense_logits, prompt_inputs
from tests.engine.videos import make_video

ANSWERS = ((5, 99, 3, 3), (17,), (40, 41, 42), (1, 2))
PRUNED = PruningConfig(method="hieravid", retention=0.3)


def requests_of(**options):
    return [
        Request(make_video(2 + n, seed=n), "what happens", seed=n, forced_token_ids=ids, **options)
        for n, ids in enumerate(ANSWERS)
    ]


def test_logprobs_are_those_of_transformers(pair):
    llm, reference = pair
    for request, answer in zip(requests_of(), llm.answer(requests_of(), PruningConfig(method="none")), strict=True):
        logits = dense_logits(reference, prompt_inputs(llm, reference, request), list(request.forced_token_ids))
        expected = logits.log_softmax(dim=-1)[range(len(logits)), list(request.forced_token_ids)]
        assert answer.token_ids == list(request.forced_token_ids)
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-3, rtol=0)


def test_forced_answers_in_a_batch_equal_those_alone(llm):
    together = llm.answer(requests_of(), PRUNED)
    for request, answer in zip(requests_of(), together, strict=True):
        [alone] = llm.answer([request], PRUNED)
        assert answer.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        assert answer.stats.output_tokens == len(answer.logprobs) == len(request.forced_token_ids)


def test_forced_and_free_answers_share_a_batch(llm):
    free = Request(make_video(3), "how many?", max_new_tokens=5, seed=9)
    forced = requests_of()
    answers, traces = answer_traced(llm, [forced[0], free, *forced[1:]], PRUNED)
    [alone] = llm.answer([free], PRUNED)
    assert answers[1].token_ids == alone.token_ids
    assert answers[1].logprobs is None
    for trace, answer in zip(traces[2:], answers[2:], strict=True):
        logprobs = torch.stack(trace.logits).log_softmax(dim=-1)
        assert answer.logprobs == pytest.approx(logprobs[range(len(logprobs)), answer.token_ids].tolist(), abs=1e-5)


def test_forcing_what_the_model_says_changes_nothing(llm):
    [free] = llm.answer([Request(make_video(3), "what", max_new_tokens=6)], PRUNED)
    [forced] = llm.answer([Request(make_video(3), "what", forced_token_ids=tuple(free.token_ids))], PRUNED)
    assert (forced.token_ids, forced.text) == (free.token_ids, free.text)


def test_temperature_and_top_p_do_not_touch_the_logprobs(llm):
    plain = llm.answer(requests_of(), PRUNED)
    sampled = llm.answer(requests_of(temperature=5.0, top_p=0.1, max_new_tokens=1), PRUNED)
    assert [a.logprobs for a in sampled] == [a.logprobs for a in plain]
    assert [a.token_ids for a in sampled] == [list(ids) for ids in ANSWERS]


def test_an_end_token_ends_a_forced_answer_only_where_it_stands_last(llm):
    end = min(llm._family._chat.end_ids)
    base = Request(make_video(2), "what")
    ids = [(7, end, 8), (7, 8, end)]
    answers = llm.answer([dataclasses.replace(base, forced_token_ids=i) for i in ids], PRUNED)
    assert [a.token_ids for a in answers] == [list(i) for i in ids]
    assert [a.finish_reason for a in answers] == ["length", "stop"]
    assert [len(a.logprobs) for a in answers] == [3, 3]


@pytest.mark.parametrize(
    ("ids", "message"),
    [((), "at least one token"), ((3, -1), "forced token -1"), ((10_000,), "forced token 10000 is not one of .* 0 to")],
)
def test_senseless_forced_tokens_are_refused(llm, ids, message):
    with pytest.raises(ValueError, match=f"^request 0: .*{message}"):
        llm.answer([Request(make_video(1), "what", forced_token_ids=ids)], PRUNED)


@pytest.mark.parametrize("ids", [(1.0, 2.0), np.array([1, 2]), "ab", 3])
def test_forced_tokens_that_are_none_cost_one_answer_only(llm, ids):
    good = requests_of()[:2]
    expected = llm.answer(good, PRUNED)
    stream = iter([good[0], Request(make_video(1), "what", forced_token_ids=ids), good[1]])
    first, bad, last = sorted(llm.answer(stream, PRUNED), key=lambda outcome: outcome.number)
    assert bad == Failure(1, "invalid_request", "forced_token_ids must be a list of whole numbers")
    assert [first.token_ids, last.token_ids] == [answer.token_ids for answer in expected]


def test_an_answer_holds_plain_numbers(llm):
    [answer] = llm.answer([Request(make_video(1), "what", forced_token_ids=tuple(np.array([7, 8])))], PRUNED)
    assert json.dumps(answer.token_ids) == "[7, 8]"
