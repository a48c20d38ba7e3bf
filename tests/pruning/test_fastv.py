import pytest
import torch

from pruning import UnreachableRetentionError, VideoGrid
from pruning.peers.fastv import full_layers
from tests.pruning.peer_stages import peer, run_all
from tests.pruning.videos import scenes


@pytest.mark.parametrize(("layers", "expected"), [(1, 1), (8, 1), (12, 1), (24, 2), (28, 2), (32, 2), (40, 2), (80, 5)])
def test_the_full_layers_scale_with_depth_from_two_of_32(layers, expected):
    assert full_layers(layers) == expected


def test_the_mean_over_layers_is_the_retention():
    # Published: K = 2, R = 50 % of 32 layers: (2 + 30 · 0.5) / 32.
    plan = peer("fastv").plan(VideoGrid(16, 36), 32, 17 / 32)
    assert plan.layers == (0, 2)
    assert plan.counts == (576, 288)
    assert plan.retention == pytest.approx(17 / 32)


def test_the_tokens_that_the_last_token_attends_to_survive_as_they_are():
    hidden, grid = scenes([4], 10)
    (run,) = run_all("fastv", [(hidden, grid)], [0.3], attention=lambda index, *_: (index * 7 % 40).float())
    assert run.rows[0].tolist() == list(range(40))
    expected = sorted(sorted(range(40), key=lambda i: -(i * 7 % 40))[: run.plan.counts[1]])
    assert run.rows[1].tolist() == expected
    assert run.kept[1].values is None


def test_equal_attention_goes_to_the_first():
    hidden, grid = scenes([4], 10)
    (run,) = run_all("fastv", [(hidden, grid)], [0.3], attention=lambda index, *_: torch.ones(len(index)))
    assert run.rows[1].tolist() == list(range(run.plan.counts[1]))


@pytest.mark.parametrize("layers", [2, 8, 28, 32])
def test_below_the_full_layers_a_retention_is_unreachable(layers):
    grid = VideoGrid(16, 36)
    with pytest.raises(UnreachableRetentionError, match="fastv") as caught:
        peer("fastv").plan(grid, layers, 0.06)
    minimum = caught.value.minimum
    full = full_layers(layers)
    assert minimum == pytest.approx((full * 576 + layers - full) / (layers * 576))
    assert peer("fastv").plan(grid, layers, minimum).counts == (576, 1)
