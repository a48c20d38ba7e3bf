"""Choose diverse and relevant tokens inside the segments of many videos at once (HieraVid, Level 2)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pruning.dpp import greedy_map
from pruning.vectors import unit

# A batch of blocks is cut so that its gathered features and its kernels hold at most so many numbers (1 GiB).
_MAX_NUMBERS = 2**28


@dataclass(frozen=True)
class _Block:
    """Tokens selected together: `size` rows from `start` on, of which `count` stay."""

    start: int
    size: int
    count: int


def select_tokens(
    features: Sequence[torch.Tensor],
    relevances: Sequence[torch.Tensor],
    lengths: Sequence[Sequence[int]],
    counts: Sequence[Sequence[int]],
    max_block: int | None,
    epsilon: float,
) -> list[torch.Tensor]:
    """Rows to keep of each video, [K] int64 ascending.

    Video i has `features[i]` [n, d] and `relevances[i]` [n] float32 ≥ 0, its segments one after the
    other: segment j has lengths[i][j] rows and keeps counts[i][j] of them, chosen by greedy MAP on
    K_ij = rel_i · cos(h_i, h_j) · rel_j inside the segment. Segments of more than `max_block` rows
    are selected in even pieces, in time order. No kernel ever spans two segments.
    """
    sizes = [feature.shape[0] for feature in features]
    total = sum(sizes)
    device = features[0].device
    blocks = list(_blocks(lengths, counts, max_block))
    whole = torch.zeros(total + 1, dtype=torch.bool)  # the last entry takes what falls on padding
    buckets: dict[int, list[_Block]] = defaultdict(list)
    for block in blocks:
        if block.count == block.size:
            whole[block.start : block.start + block.size] = True
        elif block.count > 0:
            buckets[padded_size(block.size)].append(block)
    kept = whole.to(device)
    if buckets:
        units = torch.zeros(total + 1, features[0].shape[1], device=device)
        weights = torch.zeros(total + 1, device=device)
        torch.cat(list(relevances), out=weights[:total])
        row = 0
        for feature in features:
            units[row : row + feature.shape[0]] = unit(feature)
            row += feature.shape[0]
        for width, bucket in buckets.items():
            bucket.sort(key=lambda block: -block.count)
            batch = max(1, _MAX_NUMBERS // (width * max(width, units.shape[1])))
            for first in range(0, len(bucket), batch):
                rows, chosen = _select_blocks(units, weights, bucket[first : first + batch], width, epsilon)
                kept[rows.masked_fill(~chosen, total)] = True
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    rows = kept[:total].nonzero().squeeze(1).split([sum(count) for count in counts])
    return [keep - (end - size) for keep, end, size in zip(rows, ends, sizes, strict=True)]


def padded_size(size: int) -> int:
    """The size that a block of `size` tokens is padded to; its square is less than 2·size².

    Sizes form a fixed ladder by √2 through 1,024: a block's arithmetic depends on the block alone,
    never on what it is batched with.
    """
    width = 1024
    while width < size:
        width = math.isqrt(2 * width * width)
    while (smaller := math.isqrt(width * width // 2)) >= size:
        width = smaller
    return width


def _blocks(
    lengths: Sequence[Sequence[int]], counts: Sequence[Sequence[int]], max_block: int | None
) -> Iterator[_Block]:
    """The blocks of all videos in order of their rows; sizes and counts of a segment's pieces differ by at most 1."""
    start = 0
    for size, count in (pair for video in zip(lengths, counts, strict=True) for pair in zip(*video, strict=True)):
        pieces = 1 if max_block is None else max(1, -(-size // max_block))
        for piece in range(pieces):
            # Both remainders go to the first pieces, so a piece never keeps more than it has.
            part = _Block(start, _even(size, pieces, piece), _even(count, pieces, piece))
            yield part
            start += part.size


def _even(amount: int, pieces: int, piece: int) -> int:
    return amount // pieces + (piece < amount % pieces)


def _select_blocks(
    units: torch.Tensor, weights: torch.Tensor, blocks: Sequence[_Block], width: int, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the blocks, [B, width] int64 (padding points at the last row of `units`), and which are chosen."""
    device = units.device
    starts = torch.tensor([block.start for block in blocks], device=device).unsqueeze(1)
    sizes = [block.size for block in blocks]
    offset = torch.arange(width, device=device)
    padding = offset >= torch.tensor(sizes, device=device).unsqueeze(1)
    rows = (starts + offset).masked_fill(padding, units.shape[0] - 1)
    features, relevance = units[rows], weights[rows]
    kernel = features @ features.transpose(1, 2)
    # A token's cosine with itself is exactly 1 (0 for a zero vector), so that equal relevance ties by index.
    kernel.diagonal(dim1=1, dim2=2).round_()
    # Only ratios inside a block matter; a largest weight of 1 keeps small ones from underflowing when multiplied.
    scaled = relevance / relevance.amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    kernel *= scaled.unsqueeze(2)
    kernel *= scaled.unsqueeze(1)
    return rows, greedy_map(kernel, [block.count for block in blocks], sizes, scaled, epsilon)
