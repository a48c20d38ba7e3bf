import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import PruningConfig, VideoGrid, VideoTokens, make_pruner
from tests.pruning import reference
from tests.pruning.videos import attention_for, layer_between, run_stages, scenes

RETENTIONS = [1, 0.5, 0.3, 0.2, 0.1, 0.05]


def pruner_with(preset="default", **options):
    return make_pruner(PruningConfig(preset=preset, **options))


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


def check_against_reference(hidden, grid, retention, options, **plainly):
    """All stages keep the rows, with the values, that the plain reference keeps; `plainly` are its own options."""
    pruner = pruner_with(**options)
    plan = pruner.plan(grid, 8, retention)
    rows, history = run_stages(pruner, [(hidden, grid)], [retention], is_traced=True)
    video = reference.Video(hidden.double().tolist(), grid.frames, grid.positions, **plainly)
    index, values = video.input_stage(plan.counts[0])
    assert rows[0][0].tolist() == index
    live = torch.tensor(values, dtype=torch.float32)
    first = history[0][0]
    torch.testing.assert_close(hidden[index] if first.values is None else first.values, live)
    index = torch.tensor(index)
    for stage in range(1, len(plan.layers)):
        live = layer_between(live, 0, stage)
        attention = attention_for(index, 0, stage).double().tolist()
        keep = video.layer_stage(live.double().tolist(), attention, plan.counts[stage])
        live, index = live[keep], index[keep]
        assert rows[0][stage].tolist() == index.tolist()
        assert history[0][stage].state.segments.tolist() == video.segments
    assert first.state.values == pytest.approx(video.values, abs=1e-5)
    assert first.state.scores == pytest.approx(video.scores, abs=1e-3)
    check_merged_into(first, hidden)


def check_merged_into(kept, hidden):
    """Every token lives on in one that stays or in none, and who stays is the mean of all that live on in it."""
    into = kept.merged_into
    assert into.shape == (len(hidden),)
    assert into[kept.keep].tolist() == kept.keep.tolist()
    assert sorted(set(into.tolist()) - {-1}) == kept.keep.tolist()
    members = torch.stack([hidden[into == row].float().mean(0) for row in kept.keep.tolist()])
    torch.testing.assert_close(hidden[kept.keep] if kept.values is None else kept.values, members.to(hidden.dtype))


@pytest.mark.parametrize("preset", ["default", "author"])
@pytest.mark.parametrize("retention", [0.5, 0.3, 0.1])
@pytest.mark.parametrize("lengths", [[6, 4], [10], [1, 1, 5, 1, 2], [1]])
@pytest.mark.parametrize(("sign", "transform"), [("negative", "minmax"), ("positive", "rank"), ("positive", "exp")])
def test_all_stages_equal_the_plain_reference(preset, retention, lengths, sign, transform):
    hidden, grid = scenes(lengths, 8, dim=40, seed=len(lengths))
    options = {"preset": preset, "relevance_sign": sign, "relevance_transform": transform}
    author = preset == "author"
    plainly = {"across": author, "exact": not author, "max_block": None if author else 1024}
    check_against_reference(hidden, grid, retention, options, sign=sign, transform=transform, **plainly)


@pytest.mark.parametrize("lengths", [[6, 4], [1, 1, 5, 1, 2]])
@pytest.mark.parametrize(
    "options",
    [
        {"levels": ("segment", "frame")},
        {"levels": ("segment", "layer")},
        {"levels": ("frame", "layer")},
        {"levels": ("segment",)},
        {"levels": ("frame",)},
        {"levels": ("layer",)},
        {"selection": "relevance"},
        {"selection": "uniform"},
        {"segments": 1},
        {"segments": 4},
        {"segments": 99},
        {"beta": 0.9, "tau": 0.8},
        {"merge_share": 0.0},
        {"merge_share": 0.4},
        {"merge_share": 0.4, "selection": "relevance", "segments": 3},
    ],
)
def test_every_option_equals_the_plain_reference(lengths, options):
    hidden, grid = scenes(lengths, 6, dim=24, seed=len(lengths))
    check_against_reference(hidden, grid, 0.3, options, **options)


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


OPTIONS = st.fixed_dictionaries(
    {"preset": st.sampled_from(["default", "author"])},
    optional={
        "levels": st.sets(st.sampled_from(["segment", "frame", "layer"]), min_size=1).map(tuple),
        "tau": st.floats(-1, 1),
        "beta": st.floats(0, 1),
        "segments": st.integers(1, 40),
        "merge_share": st.floats(0, 1),
        "merge_across_segments": st.booleans(),
        "shape": st.sampled_from(["author", "geometric"]),
        "gamma": st.floats(0.05, 1),
        "selection": st.sampled_from(["dpp", "relevance", "uniform"]),
        "relevance_sign": st.sampled_from(["positive", "negative"]),
        "relevance_transform": st.sampled_from(["minmax", "rank", "exp"]),
        "budget_coupling": st.sampled_from(["exact", "author"]),
        "max_block": st.none() | st.integers(2, 40),
        "projection": st.none() | st.integers(1, 20),
        "dpp_epsilon": st.sampled_from([0.0, 1e-6, 0.5]),
    },
)


@settings(max_examples=120, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    positions=st.integers(1, 12),
    retention=st.sampled_from(RETENTIONS) | st.floats(0.001, 1),
    layers=st.integers(1, 12),
    options=OPTIONS,
    kind=st.sampled_from(["scenes", "scenes", *DEGENERATE]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 5),
)
def test_any_video_keeps_exactly_the_planned_tokens(lengths, positions, retention, layers, options, kind, dtype, seed):
    hidden, grid = scenes(lengths, positions, seed=seed)
    if kind != "scenes":
        hidden = DEGENERATE[kind](grid.frames, positions, 16)
    hidden = hidden.to(dtype)
    pruner = pruner_with(**options)
    plan = pruner.plan(grid, layers, retention)
    rows, history = run_stages(pruner, [(hidden, grid)], [retention], num_layers=layers, is_traced=True)
    check_video(rows[0], history[0], plan, hidden)
    later = plan.counts[1:] or plan.counts
    assert abs(plan.retention - retention) * layers * grid.tokens <= layers or set(later) == {1}
    first = history[0][0]
    if hidden.isfinite().all():
        check_merged_into(first, hidden)
        assert first.values is None or first.values.isfinite().all()


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


def test_without_levels_there_is_less_to_do():
    hidden, grid = scenes([4, 4], 6)
    one_stage = pruner_with(levels=["segment", "frame"])
    assert one_stage.plan(grid, 8, 0.3).layers == (0,)
    assert one_stage.plan(grid, 8, 0.3).counts == (14,)
    assert not one_stage.needs.last_token_attention
    assert not pruner_with(levels=["segment", "layer"]).needs.last_token_attention
    assert not pruner_with(selection="uniform").needs.last_token_attention
    assert pruner_with(levels=["frame", "layer"]).needs.last_token_attention
    _, history = run_stages(pruner_with(levels=["frame", "layer"]), [(hidden, grid)], [0.3])
    assert history[0][0].segment_starts is None
    assert history[0][0].values is None


def test_at_most_the_merge_share_merges():
    hidden, grid = scenes([12], 8, noise=1e-2)
    for share, merged in ((0.0, 0), (0.5, 24), (1.0, 48)):
        pruner = pruner_with(merge_share=share, levels=["segment", "frame"])
        _, history = run_stages(pruner, [(hidden, grid)], [0.5], is_traced=True)
        kept = history[0][0]
        into = kept.merged_into
        assert len(kept.keep) == 48
        lost = int((into == -1).sum())
        assert 96 - 48 - lost == int(((into != torch.arange(96)) & (into >= 0)).sum())
        assert merged >= 48 - lost


def test_tracing_changes_nothing_else():
    hidden, grid = scenes([5, 3], 6)
    plain, _ = run_stages(pruner_with(), [(hidden, grid)], [0.2])
    traced, history = run_stages(pruner_with(), [(hidden, grid)], [0.2], is_traced=True)
    assert [row.tolist() for row in plain[0]] == [row.tolist() for row in traced[0]]
    assert history[0][0].merged_into is not None
    _, history = run_stages(pruner_with(), [(hidden, grid)], [0.2])
    assert history[0][0].merged_into is None


def test_a_calibration_must_be_applied_before_it_can_prune():
    with pytest.raises(ValueError, match=r"calibration 'x\.json' has to be read and applied first"):
        make_pruner(PruningConfig(calibration="x.json"))


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
