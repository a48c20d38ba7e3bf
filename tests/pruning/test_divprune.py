import pytest
import torch

from pruning import VideoGrid
from pruning.peers import divprune
from tests.pruning.peer_stages import prune_one
from tests.pruning.reference import cosine
from tests.pruning.videos import scenes


def farthest_points(tokens, count):
    """Greedy max-min diversity on plain numbers."""
    rows = range(len(tokens))
    distance = [[1 - cosine(a, b) for b in tokens] for a in tokens]
    kept = [max(rows, key=lambda i: min(distance[i][j] for j in rows if j != i))]
    while len(kept) < count:
        kept.append(max((i for i in rows if i not in kept), key=lambda i: min(distance[i][j] for j in kept)))
    return sorted(kept)


@pytest.mark.parametrize("block", [1024, 7])
@pytest.mark.parametrize("lengths", [[4, 3], [1, 1, 2], [6]])
def test_each_token_is_the_farthest_from_those_kept(lengths, block, monkeypatch):
    monkeypatch.setattr(divprune, "_BLOCK", block)
    hidden, grid = scenes(lengths, 6, dim=24)
    for retention in (0.1, 0.4, 0.9):
        count = prune_one("divprune", hidden, grid, retention).keep
        assert count.tolist() == farthest_points(hidden.double().tolist(), len(count))


def test_one_of_each_kind_is_kept_before_any_copy():
    kinds = torch.eye(8)[:4]
    hidden = kinds.repeat_interleave(10, 0)
    keep = prune_one("divprune", hidden, VideoGrid(5, 8), 0.1).keep
    assert sorted((keep // 10).tolist()) == [0, 1, 2, 3]
    more = prune_one("divprune", hidden, VideoGrid(5, 8), 0.5).keep
    assert set((more // 10).tolist()) == {0, 1, 2, 3}
    assert len(more) == 20
