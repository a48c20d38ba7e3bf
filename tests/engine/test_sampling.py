"""Sampling draws from the right distribution, and from each request's own random numbers."""

import dataclasses

import pytest
import torch

from pipeline.engine import Request
from pipeline.engine.sampling import Sampler, choose_tokens
from pruning import PruningConfig
from tests.engine.videos import make_video

PROBABILITIES = torch.tensor([0.1, 0.45, 0.05, 0.4])


def frequencies(temperature=1.0, top_p=1.0, draws=4000):
    logits = PROBABILITIES.log().expand(draws, -1)
    samplers = [Sampler(temperature, top_p, seed) for seed in range(draws)]
    return torch.bincount(torch.tensor(choose_tokens(logits, samplers)), minlength=4) / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_at_a_temperature(temperature):
    expected = (PROBABILITIES.log() / temperature).softmax(dim=0)
    torch.testing.assert_close(frequencies(temperature), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize(("top_p", "inside"), [(0.3, [1]), (0.44, [1]), (0.46, [1, 3]), (0.9, [1, 3, 0])])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, inside):
    expected = torch.zeros(4)
    expected[inside] = PROBABILITIES[inside] / PROBABILITIES[inside].sum()
    torch.testing.assert_close(frequencies(top_p=top_p), expected, atol=0.03, rtol=0)


def test_temperature_zero_takes_the_most_likely_token():
    assert choose_tokens(PROBABILITIES.log().expand(3, -1), [Sampler(0.0, 1.0, seed) for seed in range(3)]) == [1] * 3


@pytest.mark.parametrize("temperature", [1e-3, 1e-300, 5e-324])
def test_a_tiny_temperature_takes_the_most_likely_token(temperature):
    logits = PROBABILITIES.log().expand(3, -1)
    assert choose_tokens(logits, [Sampler(temperature, 1.0, seed) for seed in range(3)]) == [1] * 3


def test_greedy_and_sampled_rows_share_a_batch():
    logits = PROBABILITIES.log().expand(2, -1)
    rows = [choose_tokens(logits, [Sampler(0.0, 1.0, 0), Sampler(1.0, 1.0, seed)]) for seed in range(50)]
    assert {row[0] for row in rows} == {1}
    assert len({row[1] for row in rows}) > 1


def test_a_seed_gives_the_same_answer_in_any_batch(llm):
    def ask(seed, frames=3):
        return Request(make_video(frames), "what", max_new_tokens=12, seed=seed, temperature=1.0, top_p=0.95)

    pruning = PruningConfig(method="hieravid", retention=0.5)
    [alone] = llm.answer([ask(7)], pruning)
    together = llm.answer([ask(1, 6), ask(7), dataclasses.replace(ask(2), temperature=0.0), ask(7), ask(3)], pruning)
    assert together[1].token_ids == alone.token_ids == together[3].token_ids
    assert together[4].token_ids != alone.token_ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_numbers_are_refused_and_spend_no_random_number(temperature):
    logits = torch.stack((PROBABILITIES.log(), torch.full((4,), torch.nan)))
    samplers = [Sampler(temperature, 1.0, seed) for seed in (3, 4)]
    with pytest.raises(ValueError, match="not numbers"):
        choose_tokens(logits, samplers)
    assert choose_tokens(logits[:1], samplers[:1]) == choose_tokens(logits[:1], [Sampler(temperature, 1.0, 3)])
