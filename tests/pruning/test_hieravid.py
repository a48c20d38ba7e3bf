import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import PruningConfig, VideoGrid, VideoTokens, make_pruner
from tests.pruning import reference
from tests.pruning.videos import attention_for, layer_between, run_stages, scenes

RETENTIONS = [1, 0.5, 0.3, 0.2, 0.1, 0.05]


def pruner_with(**options):
    return make_pruner(PruningConfig(**options))


def check_video(rows, history, plan, hidden):
    """What every stage of every video promises."""
    lives = hidden.shape[0]
    for stage, (row, kept) in enumerate(zip(rows, history, strict=True)):
        assert len(row) == plan.counts[stage]
        assert row.tolist() == sorted(set(row.tolist()))
        assert kept.keep.dtype == torch.int64
        assert kept.keep.device == hidden.device
        assert kept.keep[0] >= 0
        assert kept.keep[-1] < lives
        assert kept.segment_starts is None or len(kept.segment_starts) == len(kept.state.lengths)
        assert len(kept.state.lengths) == len(kept.state.values) == len(kept.state.scores)
        assert kept.state.segments.bincount(minlength=len(kept.state.lengths)).tolist() == list(kept.state.lengths)
        assert (kept.state.segments.diff() >= 0).all()
        if kept.values is not None:
            assert stage == 0
            assert kept.values.shape == (len(row), hidden.shape[1])
            assert kept.values.dtype == hidden.dtype
        lives = len(row)


@pytest.mark.parametrize("preset", ["default", "author"])
@pytest.mark.parametrize("retention", [0.5, 0.3, 0.1])
@pytest.mark.parametrize("lengths", [[6, 4], [10], [1, 1, 5, 1, 2], [1]])
@pytest.mark.parametrize(("sign", "transform"), [("negative", "minmax"), ("positive", "rank"), ("positive", "exp")])
def test_all_stages_equal_the_plain_reference(preset, retention, lengths, sign, transform):
    hidden, grid = scenes(lengths, 8, dim=40, seed=len(lengths))
    pruner = pruner_with(preset=preset, relevance_sign=sign, relevance_transform=transform)
    plan = pruner.plan(grid, 8, retention)
    rows, history = run_stages(pruner, [(hidden, grid)], [retention])

    author = preset == "author"
    video = reference.Video(
        hidden.double().tolist(), grid.frames, grid.positions, across=author, exact=not author,
        max_block=None if author else 1024, sign=sign, transform=transform,
    )  # fmt: skip
    index, values = video.input_stage(plan.counts[0])
    assert rows[0][0].tolist() == index
    live = torch.tensor(values, dtype=torch.float32)
    torch.testing.assert_close(hidden[index] if history[0][0].values is None else history[0][0].values, live)
    index = torch.tensor(index)
    for stage in range(1, 4):
        live = layer_between(live, 0, stage)
        attention = attention_for(index, 0, stage).double().tolist()
        keep = video.layer_stage(live.double().tolist(), attention, plan.counts[stage])
        live, index = live[keep], index[keep]
        assert rows[0][stage].tolist() == index.tolist()
        assert history[0][stage].state.segments.tolist() == video.segments
    assert history[0][-1].state.values == pytest.approx(video.values, abs=1e-5)
    assert history[0][-1].state.scores == pytest.approx(video.scores, abs=1e-3)


def test_split_segments_equal_the_plain_reference():
    hidden, grid = scenes([12], 10, dim=64)
    pruner = pruner_with(max_block=16)
    plan = pruner.plan(grid, 4, 0.4)
    rows, _ = run_stages(pruner, [(hidden, grid)], [0.4], num_layers=4)
    video = reference.Video(hidden.double().tolist(), 12, 10, max_block=16)
    index, values = video.input_stage(plan.counts[0])
    live, index = layer_between(torch.tensor(values, dtype=torch.float32), 0, 1), torch.tensor(index)
    keep = video.layer_stage(live.double().tolist(), attention_for(index, 0, 1).double().tolist(), plan.counts[1])
    assert rows[0][1].tolist() == index[keep].tolist()


DEGENERATE = {
    "all equal": lambda t, p, d: torch.ones(t * p, d),
    "zeros": lambda t, p, d: torch.zeros(t * p, d),
    "one segment": lambda t, p, d: scenes([t], p, d, noise=0.1)[0],
    "every frame a segment": lambda t, p, d: scenes([1] * t, p, d)[0],
    "one zero frame": lambda t, p, d: scenes([t], p, d)[0].index_fill(0, torch.arange(p), 0.0),
    "rank one": lambda t, p, d: torch.randn(t * p, 1) * torch.ones(1, d),
    "huge": lambda t, p, d: scenes([t], p, d)[0] * 1e4,
    "tiny": lambda t, p, d: scenes([t], p, d)[0] * 1e-6,
    "not finite": lambda t, p, d: torch.full((t * p, d), float("nan")),
}


@pytest.mark.parametrize("kind", DEGENERATE)
@pytest.mark.parametrize("retention", RETENTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_degenerate_features_keep_exactly_the_planned_tokens(kind, retention, dtype):
    torch.manual_seed(0)
    pruner = pruner_with()
    for frames, positions in ((1, 1), (1, 9), (7, 1), (6, 9)):
        hidden, grid = DEGENERATE[kind](frames, positions, 12).to(dtype), VideoGrid(frames, positions)
        rows, history = run_stages(pruner, [(hidden, grid)], [retention])
        check_video(rows[0], history[0], pruner.plan(grid, 8, retention), hidden)
        values = history[0][0].values
        if values is not None and kind != "not finite":
            assert values.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    positions=st.integers(1, 12),
    retention=st.sampled_from(RETENTIONS) | st.floats(0.01, 1),
    layers=st.integers(1, 12),
    preset=st.sampled_from(["default", "author"]),
    shape=st.sampled_from(["author", "geometric"]),
    transform=st.sampled_from(["minmax", "rank", "exp"]),
    seed=st.integers(0, 5),
)
def test_any_video_keeps_exactly_the_planned_tokens(
    lengths, positions, retention, layers, preset, shape, transform, seed
):
    hidden, grid = scenes(lengths, positions, seed=seed)
    pruner = pruner_with(preset=preset, shape=shape, relevance_transform=transform)
    rows, history = run_stages(pruner, [(hidden, grid)], [retention], num_layers=layers)
    check_video(rows[0], history[0], pruner.plan(grid, layers, retention), hidden)


@pytest.mark.parametrize("attention", [torch.zeros_like, lambda i: torch.full_like(i, torch.inf, dtype=torch.float32)])
def test_useless_attention_still_keeps_the_planned_tokens(attention):
    hidden, grid = scenes([5, 3], 6)
    pruner = pruner_with()
    rows, history = run_stages(
        pruner, [(hidden, grid)], [0.3], attention=lambda index, seed, stage: attention(index.float())
    )
    check_video(rows[0], history[0], pruner.plan(grid, 8, 0.3), hidden)


@pytest.mark.parametrize("preset", ["default", "author"])
def test_company_does_not_change_what_is_kept(preset):
    pruner = pruner_with(preset=preset)
    videos = [
        scenes([9, 7], 12, dim=32, seed=1),
        scenes([1], 12, dim=32, seed=2),
        scenes([1] * 8, 5, dim=32, seed=3),
        scenes([30], 12, dim=32, seed=4, constants=(3, 7, 11)),
    ]
    retentions = [0.3, 1.0, 0.1, 0.5]
    together, kept_together = run_stages(pruner, videos, retentions)
    for i, (video, retention) in enumerate(zip(videos, retentions, strict=True)):
        alone, kept_alone = run_stages(pruner, [video], [retention])
        for a, b in zip(together[i], alone[0], strict=True):
            assert torch.equal(a, b)
        a, b = kept_together[i][0].values, kept_alone[0][0].values
        assert (a is None and b is None) or torch.equal(a, b)


def test_nothing_changes_at_retention_one():
    hidden, grid = scenes([3, 4], 5)
    rows, history = run_stages(pruner_with(), [(hidden, grid)], [1.0])
    for row, kept in zip(rows[0], history[0], strict=True):
        assert torch.equal(row, torch.arange(35))
        assert kept.values is None
    assert len(history[0][0].segment_starts) == 2


def test_newlines_count_as_tokens_but_not_as_picture():
    # A hard cut at frame 3; newlines repeat across it and would hide it if they were counted.
    constants = tuple(range(3, 12))
    hidden, grid = scenes([3, 3], 12, seed=2, constants=constants)
    pruner = pruner_with()
    rows, history = run_stages(pruner, [(hidden, grid)], [0.5])
    assert len(history[0][0].segment_starts) == 2
    assert pruner.plan(grid, 8, 0.5).num_tokens == 72
    check_video(rows[0], history[0], pruner.plan(grid, 8, 0.5), hidden)
    _, counted = run_stages(pruner, [(hidden, VideoGrid(6, 12))], [0.5])
    assert len(counted[0][0].segment_starts) == 1


def test_still_scenes_merge_into_their_first_frame():
    hidden, grid = scenes([8, 8], 6, noise=1e-3)
    rows, history = run_stages(pruner_with(), [(hidden, grid)], [0.075], num_layers=1)
    # round(0.075·96) = 7 is below the 12 heads that cannot merge; the rest falls to the selection.
    assert len(history[0][0].segment_starts) == 2
    assert len(rows[0][0]) == 7
    assert all(row // 6 in (0, 8) for row in rows[0][0].tolist())
    position = rows[0][0][0].item()
    torch.testing.assert_close(history[0][0].values[0], hidden[position:48:6].mean(0))


def test_diverse_tokens_survive_and_order_is_kept():
    # One segment, all tokens alike but for one in the middle.
    hidden, grid = torch.ones(40, 8), VideoGrid(1, 40)
    hidden[17] = torch.tensor([1.0, -1.0] * 4)
    rows, _ = run_stages(pruner_with(), [(hidden, grid)], [0.1], num_layers=1)
    assert rows[0][0].tolist() == [0, 1, 2, 17]


def test_later_stages_say_what_they_miss():
    hidden, grid = scenes([2, 2], 4)
    pruner = pruner_with()
    plan = pruner.plan(grid, 8, 0.5)
    video = VideoTokens(grid, plan, hidden, torch.arange(16))
    with pytest.raises(ValueError, match="needs the state"):
        pruner.prune_layer(1, [video])
    (kept,) = pruner.prune_input([video])
    video = VideoTokens(grid, plan, hidden[kept.keep], kept.keep, state=kept.state)
    with pytest.raises(ValueError, match="attention"):
        pruner.prune_layer(1, [video])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_keeps_the_same_tokens():
    videos = [scenes([9, 7], 12, dim=32, seed=1), scenes([1] * 8, 5, dim=32, seed=3)]
    on_gpu = [(hidden.cuda(), grid) for hidden, grid in videos]
    expected, _ = run_stages(pruner_with(), videos, [0.3, 0.1])
    rows, history = run_stages(pruner_with(), on_gpu, [0.3, 0.1])
    for a, b in zip(rows, expected, strict=True):
        assert [row.tolist() for row in a] == [row.tolist() for row in b]
    assert all(kept.keep.is_cuda for video in history for kept in video)
