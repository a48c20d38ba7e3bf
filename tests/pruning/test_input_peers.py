import pytest
import torch

from pruning import PruningConfig, VideoGrid, VideoTokens, make_pruner
from tests.pruning.videos import run_stages, scenes


def keep(method, grid, retention, seed=0, company=0):
    pruner = make_pruner(PruningConfig(method=method))
    plan = pruner.plan(grid, 8, retention)
    video = VideoTokens(grid, plan, torch.zeros(grid.tokens, 2), torch.arange(grid.tokens), seed=seed)
    other = VideoTokens(VideoGrid(2, 3), pruner.plan(VideoGrid(2, 3), 8, 0.5), torch.zeros(6, 2), torch.arange(6), 5)
    return pruner.prune_input([other] * company + [video])[-1].keep


@pytest.mark.parametrize("method", ["uniform", "random", "none"])
@pytest.mark.parametrize("retention", [1, 0.5, 0.3, 0.1, 0.01])
def test_one_stage_at_the_input_with_exactly_the_planned_tokens(method, retention):
    for grid in (VideoGrid(1, 1), VideoGrid(16, 36), VideoGrid(3, 7, (6,))):
        pruner = make_pruner(PruningConfig(method=method))
        plan = pruner.plan(grid, 28, retention)
        rows = keep(method, grid, retention)
        assert plan.layers == (0,)
        assert plan.num_layers == 28
        assert len(rows) == plan.counts[0]
        assert rows.tolist() == sorted(set(rows.tolist()))
        assert rows[0] >= 0
        assert rows[-1] < grid.tokens


def test_none_keeps_everything_at_any_retention():
    assert keep("none", VideoGrid(4, 5), 0.2).tolist() == list(range(20))


def test_uniform_takes_the_middle_of_even_parts():
    assert keep("uniform", VideoGrid(5, 4), 0.25).tolist() == [2, 6, 10, 14, 18]
    assert keep("uniform", VideoGrid(1, 10), 0.3).tolist() == [1, 5, 8]
    assert keep("uniform", VideoGrid(3, 3), 1).tolist() == list(range(9))


def test_random_depends_on_the_seed_alone():
    grid = VideoGrid(16, 36)
    first = keep("random", grid, 0.2, seed=3)
    assert torch.equal(first, keep("random", grid, 0.2, seed=3, company=2))
    assert not torch.equal(first, keep("random", grid, 0.2, seed=4))
    torch.manual_seed(1)
    assert torch.equal(first, keep("random", grid, 0.2, seed=3))


@pytest.mark.parametrize("method", ["uniform", "random", "none"])
def test_values_and_later_stages_are_left_alone(method):
    pruner = make_pruner(PruningConfig(method=method))
    rows, history = run_stages(pruner, [scenes([3], 4)], [0.5])
    assert len(rows[0]) == 1
    assert history[0][0].values is None
    assert history[0][0].segment_starts is None
    with pytest.raises(ValueError, match=f"{method} prunes at the input only"):
        pruner.prune_layer(1, [])
