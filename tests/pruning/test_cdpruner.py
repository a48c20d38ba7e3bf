import pytest
import torch

from pruning import VideoGrid
from tests.pruning.peer_stages import prune_one
from tests.pruning.videos import scenes


def largest_determinants(kernel, count):
    """Greedy MAP by the definition: at each step the item that makes the determinant of the chosen largest."""
    chosen = []
    for _ in range(count):
        rest = [i for i in range(len(kernel)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: kernel[[*chosen, i]][:, [*chosen, i]].det()))
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(4))
def test_each_token_adds_most_to_the_determinant_of_the_conditional_kernel(seed):
    hidden, grid = scenes([3, 2], 6, dim=40, seed=seed)
    prompt = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed))
    units = torch.nn.functional.normalize(hidden.double(), dim=1)
    words = torch.nn.functional.normalize(prompt.double(), dim=1)
    relevance = (units @ words.T).mean(1)
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    kernel = relevance[:, None] * (units @ units.T) * relevance[None, :]
    keep = prune_one("cdpruner", hidden, grid, 0.3, prompt=prompt).keep
    assert keep.tolist() == largest_determinants(kernel, 9)


def test_of_equally_diverse_tokens_those_near_the_instruction_stay():
    hidden = torch.eye(12)
    prompt = hidden[[2, 5, 9]] + 0.01
    assert prune_one("cdpruner", hidden, VideoGrid(3, 4), 0.25, prompt=prompt).keep.tolist() == [2, 5, 9]


def test_of_equally_relevant_tokens_copies_go_first():
    prompt = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    hidden = torch.eye(4).repeat_interleave(3, 0)
    assert prune_one("cdpruner", hidden, VideoGrid(3, 4), 1 / 3, prompt=prompt).keep.tolist() == [0, 3, 6, 9]


def test_without_words_diversity_alone_decides():
    hidden = torch.eye(4).repeat_interleave(3, 0)
    keep = prune_one("cdpruner", hidden, VideoGrid(3, 4), 1 / 3, prompt=torch.empty(0, 4)).keep
    assert keep.tolist() == [0, 3, 6, 9]
