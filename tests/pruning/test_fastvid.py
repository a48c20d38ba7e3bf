import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning import VideoGrid
from pruning.peers.fastvid import anchor_counts, density_scores, segment_starts
from tests.pruning.peer_stages import prune_one
from tests.pruning.reference import cosine
from tests.pruning.videos import scenes


def density_of(tokens, rows):
    """ρ·δ of a frame's rows that are not salient, in plain numbers."""
    scale = math.sqrt(len(tokens[0]))
    distance = {(i, j): math.dist(tokens[i], tokens[j]) / scale for i in rows for j in rows}
    density = {}
    for i in rows:
        nearest = sorted(distance[i, j] for j in rows)[:4]
        density[i] = math.exp(-sum(x * x for x in nearest) / len(nearest))
    scores = {}
    for i in rows:
        denser = [distance[i, j] for j in rows if density[j] > density[i]]
        scores[i] = density[i] * (min(denser) if denser else max(distance.values()))
    return scores


def test_cuts_fall_at_scene_changes_and_at_the_least_alike_transitions():
    hidden, grid = scenes([4, 3, 1, 5], 6, dim=64, noise=0.01)
    frames = hidden.view(13, 6, 64).mean(1)
    assert {4, 7, 8} < set(segment_starts(frames))
    assert len(segment_starts(frames)) == 8  # c − 1 cuts in any case
    similarity = [cosine(a, b) for a, b in zip(frames.tolist(), frames[1:].tolist(), strict=False)]
    least = sorted(range(12), key=lambda t: similarity[t])[:7]
    assert segment_starts(frames) == (0, *sorted(t + 1 for t in least))
    assert len(segment_starts(scenes([1] * 12, 6, dim=64)[0].view(12, 6, 64).mean(1))) == 12
    assert segment_starts(frames[:1]) == (0,)
    assert grid.frames == 13


def test_density_scores_equal_the_plain_reference():
    tokens = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0))
    is_salient = torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.3
    scores = density_scores(tokens, is_salient)
    for t in range(3):
        rows = [p for p in range(12) if not is_salient[t, p]]
        expected = density_of(tokens[t].double().tolist(), rows)
        for p in range(12):
            assert scores[t, p].item() == pytest.approx(expected.get(p, -math.inf), abs=1e-5)


def merged_by_hand(hidden, keep, salient, starts, frames, positions):
    """Values of the kept rows: anchors blended with the tokens of their segment that are most alike to them."""
    tokens = hidden.tolist()
    kept = set(keep)
    values = {}
    for start, end in zip(starts, (*starts[1:], frames), strict=True):
        members = [r for r in range(start * positions, end * positions) if r not in salient]
        for t in range(start, end):
            anchors = [r for r in members if r in kept and r // positions == t]
            nearest = {m: max(anchors, key=lambda a: cosine(tokens[m], tokens[a])) for m in members} if anchors else {}
            for anchor in anchors:
                own = [m for m in members if nearest[m] == anchor]
                weight = max(0.6, 1 / (len(own) + 1))
                mean = hidden[own].mean(0)
                values[anchor] = weight * hidden[anchor] + (1 - weight) * mean
    return torch.stack([values.get(row, hidden[row]) for row in keep])


@pytest.mark.parametrize("lengths", [[9, 1, 6], [4, 4, 4, 4], [1]])
@pytest.mark.parametrize("retention", [0.2, 0.3, 0.6])
def test_salient_tokens_stay_and_the_others_join_their_anchors(lengths, retention):
    positions = 20
    hidden, grid = scenes(lengths, positions, dim=24, noise=0.5, seed=1)
    attention = torch.rand(grid.tokens, generator=torch.Generator().manual_seed(2))
    kept = prune_one("fastvid", hidden, grid, retention, attention=attention)
    count, frames = round(retention * grid.tokens), grid.frames
    assert len(kept.keep) == count
    assert kept.segment_starts == segment_starts(hidden.view(frames, positions, -1).mean(1))
    salient = set()
    for t in range(frames):
        quota = count * (t + 1) // frames - count * t // frames
        rows = range(t * positions, (t + 1) * positions)
        salient |= set(sorted(rows, key=lambda r: -attention[r])[: quota - quota * 2 // 5])
    keep = kept.keep.tolist()
    assert salient < set(keep)
    expected = merged_by_hand(hidden, keep, salient, kept.segment_starts, frames, positions)
    torch.testing.assert_close(kept.values, expected)
    for t in range(frames):
        rest = [r for r in range(t * positions, (t + 1) * positions) if r not in salient]
        anchors = [r for r in rest if r in keep]
        scores = density_of(hidden.double().tolist(), rest)
        assert anchors == sorted(sorted(rest, key=lambda r: -scores[r])[: len(anchors)])
    into = kept.merged_into.tolist()
    owner = [sum(start <= r // positions for start in kept.segment_starts) for r in range(grid.tokens)]
    assert all(owner[into[r]] == owner[r] for r in range(grid.tokens) if into[r] >= 0)


def test_anchors_stand_in_every_fourth_frame_from_the_end():
    counts = anchor_counts((0, 6, 7), [4] * 12, [20] * 12)
    assert counts == [{5: 12, 1: 12}, {6: 4}, {11: 10, 7: 10}]


def test_anchors_without_room_spread_over_more_frames():
    assert anchor_counts((0,), [6] * 4, [20] * 4) == [{3: 12, 0: 12}]
    assert anchor_counts((0,), [6] * 4, [9] * 4) == [{3: 6, 2: 6, 1: 6, 0: 6}]
    assert anchor_counts((0,), [3, 0], [3, 0]) == [{0: 3}]


@given(data=st.data())
def test_anchor_counts_keep_the_quotas_of_each_segment(data):
    room = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    quotas = [data.draw(st.integers(0, n)) for n in room]
    cuts = sorted(data.draw(st.sets(st.integers(1, 12))) & set(range(1, len(room))))
    starts = (0, *cuts)
    segments = anchor_counts(starts, quotas, room)
    for start, end, counts in zip(starts, (*cuts, len(room)), segments, strict=True):
        assert sum(counts.values()) == sum(quotas[start:end])
        assert all(start <= t < end and 0 < count <= room[t] for t, count in counts.items())


def test_copies_of_an_anchor_stay_what_they_are():
    hidden = torch.ones(24, 8)
    kept = prune_one("fastvid", hidden, VideoGrid(2, 12), 0.5)
    torch.testing.assert_close(kept.values, hidden[:12])
