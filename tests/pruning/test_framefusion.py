import pytest
import torch

from pruning import UnreachableRetentionError, VideoGrid
from pruning.peers.framefusion import FrameFusion
from tests.pruning.peer_stages import peer, prune_one, run_all
from tests.pruning.reference import cosine, mean
from tests.pruning.videos import scenes


def same(hidden, *_):
    return hidden


def blend(hidden, seed, layer):
    """A layer that pulls all tokens towards their mean, so that more of them become alike."""
    return 0.75 * hidden + 0.25 * hidden.mean(0)


def runs(tokens, index, positions, fold):
    """The rows of each run, by the rule: a row in `fold` joins the live row before it at its position."""
    joined = {}
    for place in range(positions):
        head = None
        for row in sorted((r for r in range(len(index)) if index[r] % positions == place), key=lambda r: index[r]):
            if row in fold:
                joined[head].append(row)
            else:
                head = row
                joined[row] = [row]
    return dict(sorted(joined.items()))


def similarities(tokens, index, positions):
    """Each row's cosine to the live row before it at its position."""
    alike = {}
    for row in range(len(index)):
        before = [r for r in range(len(index)) if index[r] % positions == index[row] % positions and r < row]
        if before:
            alike[row] = cosine(tokens[row], tokens[before[-1]])
    return alike


def test_a_still_run_becomes_its_mean_in_the_place_of_its_first():
    hidden, grid = scenes([4, 4], 6, dim=64, noise=0.2)
    (run,) = run_all("framefusion", [(hidden, grid)], [0.24], between=same)
    assert run.rows[0].tolist() == [*range(6), *range(24, 30)]
    torch.testing.assert_close(run.kept[0].values[0], hidden[0:24:6].mean(0))
    torch.testing.assert_close(run.kept[0].values[7], hidden[25::6].mean(0))
    assert run.kept[0].merged_into.tolist() == [*range(6)] * 4 + [*range(24, 30)] * 4


@pytest.mark.parametrize("noise", [0.7, 0.8])
@pytest.mark.parametrize("retention", [0.25, 0.35])
def test_every_stage_follows_the_rule(noise, retention):
    positions, layers = 7, 10
    hidden, grid = scenes([6, 5], positions, dim=32, noise=noise, seed=2)
    (run,) = run_all("framefusion", [(hidden, grid)], [retention], layers, between=blend)
    budget, spent, live, index, goes_on = retention * layers * grid.tokens, 0.0, hidden, list(range(grid.tokens)), True
    for stage, (rows, kept) in enumerate(zip(run.rows, run.kept, strict=True)):
        if stage:
            live = blend(live, 0, stage)
        allowed = (budget - spent) / (layers - stage)
        if goes_on:
            alike = similarities(live.tolist(), index, positions)
            fold = {row for row, value in alike.items() if value >= 0.6}
            goes_on = len(fold) >= 0.1 * len(index)
            if len(index) - len(fold) <= allowed:
                fold = set(sorted(alike, key=lambda row: -alike[row])[: len(index) - int(allowed + 0.5)])
                goes_on = False
            grouped = runs(live.tolist(), index, positions, fold)
            assert kept.keep.tolist() == list(grouped)
            expected = torch.tensor([mean(live[rows].tolist()) for rows in grouped.values()])
            torch.testing.assert_close(live if kept.values is None else kept.values, expected)
            live = expected
        else:
            assert len(rows) == int(allowed + 0.5)
            live = live[kept.keep]
        spent += len(rows)
        index = rows.tolist()
    assert len(run.rows) > 1
    assert run.plan.retention == pytest.approx(retention, abs=0.5 / grid.tokens)


def test_merging_goes_on_while_a_tenth_folds_and_then_pruning_takes_its_turn():
    # Half of the positions repeat; layer 1 makes the frames of the others alike, by shrinking what sets them apart.
    common, apart = torch.randn(2, 32, 16, generator=torch.Generator().manual_seed(0))
    common = common[:8].repeat(4, 1)
    apart.view(4, 8, 16)[:, :4] = 0
    hidden, grid = torch.cat((common, 2 * apart), 1), VideoGrid(4, 8)

    def layer(hidden, _, layer):
        return torch.cat((hidden[:, :16], 0.05 * hidden[:, 16:]), 1) if layer == 1 else hidden

    (run,) = run_all("framefusion", [(hidden, grid)], [0.25], between=layer)
    assert [len(rows) for rows in run.rows] == [20, 8, 8, 6]
    (run,) = run_all("framefusion", [(hidden, grid)], [0.25], between=same)
    assert [len(rows) for rows in run.rows] == [20, 20, 4]


def test_the_more_merges_the_more_tokens_are_left_at_the_same_budget():
    last = {}
    for name, video in {
        "still": scenes([8], 12, dim=64, noise=0.2),
        "half": scenes([6, 1, 1], 12, dim=64, noise=0.2),
        "cuts": scenes([1] * 8, 12, dim=64),
    }.items():
        (run,) = run_all("framefusion", [video], [0.3], between=same)
        last[name] = run.plan.counts[-1]
        assert run.plan.retention == pytest.approx(0.3, abs=0.5 / 96)
    assert last["still"] > last["half"] > last["cuts"]


def test_repeats_beyond_the_budget_stay_and_the_most_alike_merge():
    hidden, grid = scenes([10], 6, dim=32, noise=0.3, seed=1)
    kept = prune_one("framefusion", hidden, grid, 0.5)
    assert kept.plan.layers == (0,)
    assert kept.plan.counts == (30,)
    alike = similarities(hidden.tolist(), list(range(60)), 6)
    folded = sorted(sorted(alike, key=lambda row: -alike[row])[:30])
    assert sorted(set(range(60)) - set(kept.keep.tolist())) == folded


def test_without_repeats_all_tokens_enter_layer_0_and_one_prune_follows():
    hidden, grid = scenes([1] * 6, 8, dim=64)
    (run,) = run_all("framefusion", [(hidden, grid)], [0.3], 10, attention=lambda index, *_: -index.float())
    assert run.plan.layers == (0, 1)
    assert run.plan.counts == (48, round((0.3 * 10 - 1) * 48 / 9))
    assert run.rows[1].tolist() == list(range(run.plan.counts[1]))


def test_a_merge_too_dear_for_the_later_layers_gives_way_to_pruning():
    # A tenth folds at the input only: 36 of 40 tokens in layer 0 and again in layer 1 would cost 72 of 80.
    hidden, grid = scenes([1] * 5, 8, dim=64)
    hidden[8:12] = hidden[:4]
    (run,) = run_all("framefusion", [(hidden, grid)], [0.2 + 1e-9], 10, between=same)
    assert run.plan.counts == (36, 36, 1)
    (run,) = run_all("framefusion", [(hidden, grid)], [0.16], 10, between=same)
    assert run.plan.counts == (36, round((64 - 36) / 9))


def test_a_video_with_too_few_repeats_for_layer_0_merges_the_most_alike_at_the_input():
    hidden, grid = scenes([1] * 8, 9, dim=64)
    kept = prune_one("framefusion", hidden, grid, 0.1)
    assert kept.plan.counts == (50, 1)  # 0.1 · 8 · 72 = 57.6, less 7 for the other layers
    alike = similarities(hidden.tolist(), list(range(72)), 9)
    folded = sorted(sorted(alike, key=lambda row: -alike[row])[:22])
    assert sorted(set(range(72)) - set(kept.keep.tolist())) == folded
    assert max(alike.values()) < 0.6


def test_less_than_the_first_frame_in_layer_0_is_unreachable():
    grid = VideoGrid(16, 36)
    with pytest.raises(UnreachableRetentionError, match="framefusion") as caught:
        peer("framefusion").plan(grid, 8, 0.009)
    minimum = caught.value.minimum
    assert minimum == pytest.approx((36 + 7) / (8 * 576))
    (run,) = run_all("framefusion", [(scenes([1] * 16, 36, dim=64)[0], grid)], [minimum])
    assert run.plan.counts == (36, 1)


def test_the_bound_falls_with_the_layers():
    bound = FrameFusion().plan(VideoGrid(64, 210), 28, 0.3)
    assert bound.counts[0] == 13440
    assert bound.counts[1] == 13440 * 9 // 10
    assert bound.counts[-1] == round(0.3 * 13440)
    assert bound.retention < 0.45
