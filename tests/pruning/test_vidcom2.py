import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning import VideoGrid
from pruning.peers.vidcom2 import frame_counts
from tests.pruning.peer_stages import prune_one
from tests.pruning.reference import mean
from tests.pruning.videos import scenes


def wanted_and_scores(tokens, frames, positions, retention):
    """Each frame's share of tokens, unrounded, and each token's likeness to both centres; plain numbers."""
    columns = list(zip(*tokens, strict=True))
    centred = [[x - sum(column) / len(column) for x in column] for column in columns]
    quiet = sorted(range(len(columns)), key=lambda c: sum(x * x for x in centred[c]))[: len(columns) // 2]
    units = []
    for token in tokens:
        length = math.sqrt(sum(token[c] ** 2 for c in quiet))
        units.append([token[c] / length for c in quiet])

    def likeness(token, centre):
        distance = sum((x - y) ** 2 for x, y in zip(token, centre, strict=True))
        return sum(math.exp(-distance / (2 * 2.0**k)) for k in range(-3, 2))

    in_frame = [units[t * positions : (t + 1) * positions] for t in range(frames)]
    to_video = [[likeness(token, mean(units)) for token in frame] for frame in in_frame]
    to_frame = [[likeness(token, mean(frame)) for token in frame] for frame in in_frame]
    unique = [-sum(row) / positions for row in to_video]
    weights = [math.exp((u - max(unique)) / 0.01) for u in unique]
    wanted = [positions * min(1, retention * (1 + w / sum(weights) - 1 / frames)) for w in weights]
    return wanted, [[a + b for a, b in zip(v, f, strict=True)] for v, f in zip(to_video, to_frame, strict=True)]


@pytest.mark.parametrize("lengths", [[5], [2, 1, 3], [1] * 6])
@pytest.mark.parametrize("retention", [0.15, 0.25, 0.5])
def test_unique_frames_keep_more_and_the_least_typical_tokens_stay(lengths, retention):
    positions = 20
    hidden, grid = scenes(lengths, positions, dim=32, noise=0.5, seed=3)
    keep = prune_one("vidcom2", hidden, grid, retention).keep
    wanted, scores = wanted_and_scores(hidden.double().tolist(), grid.frames, positions, retention)
    kept = (keep // positions).bincount(minlength=grid.frames).tolist()
    for t in range(grid.frames):
        assert abs(kept[t] - wanted[t]) < 1
        frame = keep[keep // positions == t] % positions
        assert frame.tolist() == sorted(sorted(range(positions), key=lambda p: scores[t][p])[: kept[t]])


def test_a_frame_unlike_the_others_gets_the_largest_budget():
    hidden, grid = scenes([8], 20, dim=32, noise=0.2)
    hidden[60:80] = torch.randn(20, 32, generator=torch.Generator().manual_seed(9))
    kept = (prune_one("vidcom2", hidden, grid, 0.25).keep // 20).bincount(minlength=8).tolist()
    others = [count for t, count in enumerate(kept) if t != 3]
    assert kept[3] > 1.5 * max(others)
    assert max(others) - min(others) <= 1


@given(
    wanted=st.lists(st.floats(0, 12), min_size=1, max_size=8),
    share=st.floats(0, 1),
)
def test_frame_counts_add_up_within_their_limits(wanted, share):
    most = 12
    total = max(1, round(share * most * len(wanted)))
    counts = frame_counts(wanted, total, most)
    assert sum(counts) == total
    assert all(0 <= count <= most for count in counts)
    if total >= len(wanted):
        assert min(counts) >= 1


def test_fewer_tokens_than_frames_go_to_the_largest_shares():
    assert frame_counts([0.4, 0.6, 0.5, 0.5], 2, 9) == [0, 1, 1, 0]
    hidden, grid = scenes([6], 5)
    keep = prune_one("vidcom2", hidden, VideoGrid(6, 5), 0.1).keep
    assert len(keep) == 3
    assert len(set((keep // 5).tolist())) == 3
    assert grid.tokens == 30
