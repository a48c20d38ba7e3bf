"""Choose tokens inside the segments of many videos at once (HieraVid, Level 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from pruning.blocks import Blocks, by_width, segment_blocks, split_blocks
from pruning.dpp import greedy_map
from pruning.kernels import block_kernels, project

# The most rows that are selected together: 256 MiB of kernel. The authors' own runs, 64 frames at 30 %, have 6,720.
LARGEST_BLOCK = 8_192
# Picks that near the number of a model's dimensions exhaust the kernel's rank: what is left of diversity is so small
# then that rounding in float32 decides, and with it the company in a batch. Blocks that keep more than this share of
# the dimensions are treated in float64, where that costs next to nothing.
_SHALLOW = 0.5
_LARGEST_FLOAT64 = 512
# Kernels of so many numbers are treated together: more of them cost fewer launches, until they leave
# the cache of a CPU or, at 1 GiB, take too much of a GPU's memory.
_KERNELS_CPU, _KERNELS_CUDA = 2**24, 2**28


def select_tokens(
    features: Sequence[torch.Tensor],
    relevances: Sequence[torch.Tensor],
    lengths: Sequence[Sequence[int]],
    counts: Sequence[Sequence[int]],
    max_block: int | None,
    epsilon: float,
    projection: int | None = None,
    selection: Literal["dpp", "relevance", "uniform"] = "dpp",
) -> list[torch.Tensor]:
    """Rows to keep of each video, [K] int64 ascending.

    Video i has `features[i]` [n, d] and `relevances[i]` [n] float32 ≥ 0, its segments one after the
    other: segment j has lengths[i][j] rows and keeps counts[i][j] of them. `selection` says which:

    - dpp: by greedy MAP on K_ij = rel_i · cos(h_i, h_j) · rel_j inside the segment. Segments of more
      than `max_block` rows (None: than `LARGEST_BLOCK`, since a kernel's memory grows with the
      square) are selected in even pieces, in time order. `projection` takes cosines
      after a random projection to so many dimensions, which bounds the kernel's rank: a block that
      keeps more than that fills the rest by relevance. No kernel ever spans two segments.
    - relevance: those of highest relevance, ties by index.
    - uniform: evenly spaced, the middle of each of K even parts.
    """
    segments = segment_blocks(lengths, counts)
    if selection == "dpp":
        blocks = split_blocks(segments, min(max_block or LARGEST_BLOCK, LARGEST_BLOCK))
        vectors = features if projection is None else [project(feature, projection) for feature in features]
        kept = _diverse(_joined(vectors), _joined(relevances), blocks, epsilon)
    elif selection == "relevance":
        kept = _highest(_joined(relevances), segments)
    else:
        kept = _evenly_spaced(segments, features[0].device)
    rows = kept.nonzero().squeeze(1).split([sum(count) for count in counts])
    starts = [0]
    for feature in features[:-1]:
        starts.append(starts[-1] + feature.shape[0])
    return [keep - start for keep, start in zip(rows, starts, strict=True)]


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _diverse(features: torch.Tensor, relevance: torch.Tensor, blocks: Blocks, epsilon: float) -> torch.Tensor:
    """Which of the N rows stay by greedy MAP in each block, [N] bool."""
    total = features.shape[0]
    # Blocks kept whole or not at all need no kernel.
    whole = torch.repeat_interleave(blocks.counts == blocks.sizes, blocks.sizes)
    kept = torch.cat([whole, whole.new_zeros(1)]).to(features.device)  # the last entry takes what falls on padding
    limit = _KERNELS_CUDA if features.is_cuda else _KERNELS_CPU
    blocks = blocks[(blocks.counts > 0) & (blocks.counts < blocks.sizes)]
    is_deep = (blocks.counts > _SHALLOW * features.shape[1]) & (blocks.sizes <= _LARGEST_FLOAT64)
    shallow, deep = by_width(blocks[~is_deep]), by_width(blocks[is_deep])
    for width, group, dtype in (*((*of, torch.float32) for of in shallow), *((*of, torch.float64) for of in deep)):
        at_once = max(1, limit // width**2)
        for first in range(0, len(group), at_once):
            part = group[first : first + at_once]
            kernel, weights, rows = block_kernels(features, relevance, part, width, dtype)
            chosen = greedy_map(kernel, part.counts.tolist(), part.sizes.tolist(), weights, epsilon, may_overwrite=True)
            kept[rows.masked_fill(~chosen, total)] = True
    return kept[:total]


def _highest(relevance: torch.Tensor, segments: Blocks) -> torch.Tensor:
    """Which rows are among the first counts[b] of segment b by relevance, [N] bool."""
    segment, place, counts = _places(segments, relevance.device)
    order = relevance.argsort(descending=True, stable=True)
    order = order[segment[order].argsort(stable=True)]
    # In this order the segments lie as before, so position i holds the row of rank place[i] of its segment.
    return torch.zeros_like(segment, dtype=torch.bool).scatter_(0, order, place < counts)


def _evenly_spaced(segments: Blocks, device: torch.device) -> torch.Tensor:
    """Which rows are floor((i + ½)·n / k) for an i < k, inside a segment of n rows that keeps k, [N] bool."""
    _, place, counts = _places(segments, device)
    sizes = torch.repeat_interleave(segments.sizes.to(device), segments.sizes.to(device), output_size=len(place))
    # Row p is one of them if an i lies in [p·k/n − ½, (p + 1)·k/n − ½), that is 2i·n in [2p·k − n, 2(p + 1)·k − n).
    before = (2 * place * counts - sizes + 2 * sizes - 1).div(2 * sizes, rounding_mode="floor")
    after = (2 * (place + 1) * counts - sizes + 2 * sizes - 1).div(2 * sizes, rounding_mode="floor")
    return after > before


def _places(segments: Blocks, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each row: its segment, its place in the segment, and how many rows the segment keeps, [N] int64 each."""
    total = int(segments.sizes.sum())
    sizes, starts, counts = (x.to(device) for x in (segments.sizes, segments.starts, segments.counts))
    segment = torch.repeat_interleave(sizes, output_size=total)
    return segment, torch.arange(total, device=device) - starts[segment], counts[segment]
