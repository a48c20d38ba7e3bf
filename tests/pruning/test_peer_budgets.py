"""What every peer promises, whatever its rule: exact counts, no NaN, and no video looks at another."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import UnreachableRetentionError, VideoGrid, VideoTokens, method_names
from tests.pruning.peer_stages import ALL_PEERS, DEGENERATE, degenerate, peer, run_all, tokens_of
from tests.pruning.videos import scenes

INPUT_ONLY = ("cdpruner", "divprune", "evs", "fastvid", "vidcom2")


def reachable(name, grid, layers, retention):
    """The retention, or the method's minimum where that is more."""
    try:
        peer(name).plan(grid, layers, retention)
    except UnreachableRetentionError as error:
        return error.minimum
    return retention


def check_budget(name, run, layers, retention):
    tokens = run.bound.num_tokens
    if name in INPUT_ONLY:
        assert run.plan.layers == (0,)
        assert len(run.rows[0]) == max(1, math.floor(retention * tokens + 0.5))
        return
    assert abs(sum(run.plan.mlp_tokens()) - retention * layers * tokens) <= layers / 2 + 1e-6
    assert list(run.plan.counts) == sorted(run.plan.counts, reverse=True)
    assert run.plan.counts[-1] >= 1


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(ALL_PEERS),
    kind=st.sampled_from(sorted(DEGENERATE)),
    frames=st.integers(1, 9),
    positions=st.integers(1, 10),
    layers=st.integers(1, 12),
    retention=st.sampled_from([1.0, 0.5, 0.3, 0.2, 0.1]) | st.floats(0.01, 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_video_meets_its_budget(name, kind, frames, positions, layers, retention, dtype):
    hidden, grid = degenerate(kind, frames, positions, dtype=dtype)
    retention = reachable(name, grid, layers, retention)
    (run,) = run_all(name, [(hidden, grid)], [retention], layers)
    check_budget(name, run, layers, retention)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    positions=st.integers(1, 12),
    layers=st.integers(2, 28),
    retention=st.floats(0.05, 1),
    noise=st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.2]),
    seed=st.integers(0, 9),
)
def test_framefusion_meets_its_budget_and_its_bound_on_any_course(lengths, positions, layers, retention, noise, seed):
    hidden, grid = scenes(lengths, positions, noise=noise, seed=seed)
    retention = reachable("framefusion", grid, layers, retention)
    (run,) = run_all("framefusion", [(hidden, grid)], [retention], layers, between=lambda h, *_: h)
    check_budget("framefusion", run, layers, retention)


@pytest.mark.parametrize("name", ALL_PEERS)
def test_company_does_not_change_what_is_kept(name):
    videos = [
        scenes([5, 4], 9, dim=24, seed=1),
        scenes([1], 9, dim=24, seed=2),
        scenes([1] * 8, 5, dim=24, seed=3),
        scenes([12], 8, dim=24, seed=4, constants=(3, 7)),
    ]
    retentions = [0.4, 1.0, 0.3, 0.6]
    together = run_all(name, videos, retentions)
    for i in range(len(videos)):
        # The stand-in draws prompts and attention by a video's number: the same number, other company.
        others = [(video if i == k else (scenes([2], 3, dim=24)[0], VideoGrid(2, 3))) for k, video in enumerate(videos)]
        alone = run_all(name, others, [r if i == k else 1.0 for k, r in enumerate(retentions)])[i]
        assert alone.plan == together[i].plan
        for a, b in zip(alone.rows, together[i].rows, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(alone.kept, together[i].kept, strict=True):
            assert (a.values is None and b.values is None) or torch.equal(a.values, b.values)


@pytest.mark.parametrize("name", ALL_PEERS)
def test_nothing_changes_at_retention_one(name):
    hidden, grid = scenes([3, 4], 5)
    (run,) = run_all(name, [(hidden, grid)], [1.0])
    assert run.plan.retention == 1
    for rows, kept in zip(run.rows, run.kept, strict=True):
        assert torch.equal(rows, torch.arange(35))
        assert kept.values is None


@pytest.mark.parametrize("name", ALL_PEERS)
def test_features_that_are_not_finite_still_give_the_planned_count(name):
    grid = VideoGrid(4, 6)
    pruner = peer(name)
    for value in (float("nan"), float("inf")):
        hidden = torch.full((24, 8), value)
        hidden[:7] = torch.randn(7, 8, generator=torch.Generator().manual_seed(0))
        kept = pruner.prune_input([tokens_of(hidden, grid, pruner.plan(grid, 8, 0.5))])[0]
        plan = pruner.plan(grid, 8, 0.5) if kept.plan is None else kept.plan
        assert len(kept.keep) == plan.counts[0]


@pytest.mark.parametrize("name", ALL_PEERS)
def test_missing_input_is_named(name):
    hidden, grid = scenes([2, 2], 4)
    pruner = peer(name)
    video = VideoTokens(grid, pruner.plan(grid, 8, 0.5), hidden, torch.arange(16))
    if pruner.needs.prompt or pruner.needs.encoder_attention:
        with pytest.raises(ValueError, match=f"{name} needs the"):
            pruner.prune_input([video])
    elif pruner.needs.last_token_attention:
        video.state = False
        with pytest.raises(ValueError, match=f"{name} needs the last prompt token"):
            pruner.prune_layer(1, [video])
    else:
        with pytest.raises(ValueError, match=f"{name} prunes at the input only"):
            pruner.prune_layer(1, [video])


def test_all_peers_are_registered():
    assert set(ALL_PEERS) <= set(method_names())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ALL_PEERS)
def test_a_gpu_keeps_the_same_tokens(name):
    videos = [scenes([9, 7], 12, dim=32, seed=1), scenes([1] * 8, 5, dim=32, seed=3)]
    on_gpu = [(hidden.cuda(), grid) for hidden, grid in videos]
    for expected, run in zip(run_all(name, videos, [0.3, 0.4]), run_all(name, on_gpu, [0.3, 0.4]), strict=True):
        assert run.plan == expected.plan
        assert [rows.tolist() for rows in run.rows] == [rows.tolist() for rows in expected.rows]
        assert all(kept.keep.is_cuda for kept in run.kept)
