import pytest
import torch

from pruning.relevance import relevance
from tests.pruning import reference

SIGNS = ["positive", "negative"]
TRANSFORMS = ["minmax", "rank", "exp"]


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_equals_the_plain_reference(sign, transform):
    attention = torch.rand(50, generator=torch.Generator().manual_seed(0)).square()
    attention[10:14] = attention[3]
    expected = torch.tensor(reference.relevance(attention.double().tolist(), sign, transform))
    if transform == "exp":
        expected /= expected.max()  # one factor for all
    torch.testing.assert_close(relevance(attention, sign, transform), expected)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("attention", [[0.25] * 4, [0.0] * 4, [1.0], [float("nan")] * 3])
def test_constant_attention_gives_one(sign, transform, attention):
    weights = relevance(torch.tensor(attention), sign, transform)
    assert weights.tolist() == [1.0] * len(attention)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_sign_turns_the_order_round(transform):
    attention = torch.tensor([0.1, 0.6, 0.05, 0.25])
    assert relevance(attention, "positive", transform).argsort().tolist() == [2, 0, 3, 1]
    assert relevance(attention, "negative", transform).argsort().tolist() == [1, 3, 0, 2]


def test_ranks():
    assert relevance(torch.tensor([0.3, 0.1, 0.9, 0.2]), "positive", "rank").tolist() == [0.625, 0.125, 0.875, 0.375]
    assert relevance(torch.tensor([0.5, 0.1, 0.5, 0.1]), "positive", "rank").tolist() == [0.75, 0.25, 0.75, 0.25]


def test_the_authors_weight_is_near_one_but_for_attention_sinks():
    attention = torch.full((1000,), 1e-5)
    attention[7] = 0.9
    attention[8] = 1.1e-5
    weights = relevance(attention, "negative", "minmax")
    assert weights[7] == 0
    assert (weights[torch.arange(1000) != 7] > 0.99).all()


@pytest.mark.parametrize("sign", SIGNS)
def test_a_sink_does_not_overflow_the_exponential(sign):
    attention = torch.zeros(20_000)
    attention[3] = 1.0
    weights = relevance(attention, sign, "exp")
    assert weights.isfinite().all()
    assert weights.max() == 1
