import pytest
import torch

from pruning import UnreachableRetentionError, VideoGrid
from tests.pruning.peer_stages import peer, prune_one
from tests.pruning.reference import cosine
from tests.pruning.videos import scenes


@pytest.mark.parametrize("retention", [0.2, 0.35, 0.8])
@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_the_first_frame_and_the_tokens_least_like_their_predecessor_stay(retention, noise):
    hidden, grid = scenes([3, 4], 8, noise=noise)
    tokens = hidden.tolist()
    later = sorted(range(8, 56), key=lambda row: (cosine(tokens[row], tokens[row - 8]), row))
    expected = sorted([*range(8), *later[: round(retention * 56) - 8]])
    assert prune_one("evs", hidden, grid, retention).keep.tolist() == expected


def test_what_does_not_move_is_dropped_and_what_moves_stays():
    still = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    hidden = still.repeat(5, 1)
    hidden[[3 * 6 + 2, 4 * 6 + 2]] = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    keep = prune_one("evs", hidden, VideoGrid(5, 6), 8 / 30).keep
    assert keep.tolist() == [0, 1, 2, 3, 4, 5, 20, 26]


def test_less_than_the_first_frame_is_unreachable():
    grid = VideoGrid(16, 36)
    with pytest.raises(UnreachableRetentionError, match="evs") as caught:
        peer("evs").plan(grid, 8, 0.05)
    assert caught.value.minimum == 1 / 16
    assert peer("evs").plan(grid, 8, caught.value.minimum).counts == (36,)
