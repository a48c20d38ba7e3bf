"""Runs of tokens that are selected together, of many videos at once, and the sizes that they are padded to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch


@dataclass(frozen=True)
class Blocks:
    """B runs of rows: `sizes[b]` rows from `starts[b]` on, of which `counts[b]` stay; [B] int64 on the host."""

    starts: torch.Tensor
    sizes: torch.Tensor
    counts: torch.Tensor

    def __len__(self) -> int:
        """B."""
        return len(self.starts)

    def __getitem__(self, which: torch.Tensor | slice) -> Blocks:
        """The blocks at `which` (indices, a mask or a slice)."""
        return Blocks(self.starts[which], self.sizes[which], self.counts[which])


def segment_blocks(lengths: Sequence[Sequence[int]], counts: Sequence[Sequence[int]]) -> Blocks:
    """One block for each segment of each video, in order of their rows in the videos laid end to end."""
    sizes = torch.tensor(list(chain.from_iterable(lengths)), dtype=torch.int64)
    kept = torch.tensor(list(chain.from_iterable(counts)), dtype=torch.int64)
    return Blocks(sizes.cumsum(0) - sizes, sizes, kept)


def split_blocks(blocks: Blocks, largest: int) -> Blocks:
    """The blocks with those of more than `largest` rows cut into even pieces, in order.

    Sizes and counts of the pieces of one block differ by at most 1. Both remainders go to the first
    pieces, so a piece never keeps more than it has.
    """
    pieces = (blocks.sizes + largest - 1).div(largest, rounding_mode="floor").clamp_min(1)
    whole = torch.repeat_interleave(pieces)
    piece = torch.arange(len(whole)) - (pieces.cumsum(0) - pieces)[whole]
    sizes, counts = (_even(amount[whole], pieces[whole], piece) for amount in (blocks.sizes, blocks.counts))
    return Blocks(sizes.cumsum(0) - sizes + blocks.starts[:1], sizes, counts)


def _even(amount: torch.Tensor, pieces: torch.Tensor, piece: torch.Tensor) -> torch.Tensor:
    """The share of each `piece` when an amount is cut into `pieces` that differ by at most 1."""
    return amount.div(pieces, rounding_mode="floor") + (piece < amount % pieces)


def by_width(blocks: Blocks) -> Iterator[tuple[int, Blocks]]:
    """Blocks in groups of one `padded_size`, narrow ones first; inside a group by size, then count, descending."""
    if not len(blocks):
        return
    widths = [1]
    while widths[-1] < blocks.sizes.max():
        widths.append(padded_size(widths[-1] + 1))
    group = torch.searchsorted(torch.tensor(widths), blocks.sizes)
    order = blocks.counts.argsort(descending=True, stable=True)
    order = order[blocks.sizes[order].argsort(descending=True, stable=True)]
    order = order[group[order].argsort(stable=True)]
    present, amounts = group[order].unique_consecutive(return_counts=True)
    for which, members in zip(present.tolist(), order.split(amounts.tolist()), strict=True):
        yield widths[which], blocks[members]


def padded_size(size: int) -> int:
    """The size that a block of `size` tokens is padded to; its square is less than 2·size².

    Sizes form the fixed ladder ⌊√2^k⌋ (…, 512, 724, 1024), beyond it every 256: a block's arithmetic
    depends on the block alone, never on what it is batched with.
    """
    if size > 1024:
        return -(-size // 256) * 256
    # k is at least the first power whose root can reach the size.
    power = max(0, 2 * size.bit_length() - 2)
    while math.isqrt(2**power) < size:
        power += 1
    return math.isqrt(2**power)
