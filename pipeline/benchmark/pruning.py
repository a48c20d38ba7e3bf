"""How long the selection of tokens takes, beside the straightforward formulation of the same selection.

The case is the first stage of HieraVid that selects inside segments: layer 7 of 28 of a video of 64 frames of 210
tokens, d = 3584, at the authors' schedule. Both sides get the same features, relevance, budgets and block borders.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from pipeline.benchmark.picks import agree
from pipeline.benchmark.straightforward import select_straightforwardly
from pruning.blocks import segment_blocks, split_blocks
from pruning.budget import split_budgets
from pruning.kernels import project
from pruning.relevance import relevance
from pruning.schedule import author_shape, plan_stages
from pruning.segments import standard_scores
from pruning.select import select_tokens
from pruning.vectors import unit

NUM_LAYERS = 28
MAX_BLOCK = 1024
EPSILON = 1e-6
RETENTIONS = (0.3, 0.2, 0.1)
SEGMENTS = (1, 10, 30)


@dataclass(frozen=True)
class Case:
    """One selection: `features` [n, d], `relevance` [n], and the segments' lengths and kept counts."""

    features: torch.Tensor
    relevance: torch.Tensor
    lengths: list[int]
    counts: list[int]


@dataclass(frozen=True)
class Row:
    """One measured case; times are medians in milliseconds of wall time, `_cpu_ms` of the process's CPU time.

    `largest_block` is the longest run of tokens that both sides select together. `same_picks` also holds
    where picks part at a step whose two best gains differ by less than 1e-5 of the kernel's largest diagonal;
    `margin` is the largest such difference, 0 where no picks part. The projected selection keeps the share
    `projected_overlap` of the exact picks; `projected_cosine_rms` is the error of cosines among 512 tokens.
    `unsplit_…` is one run each with the segment in one block, where that was asked for.
    """

    retention: float
    live_tokens: int
    segments: int
    ours_ms: float
    straightforward_ms: float
    speedup: float
    same_picks: bool
    kept_tokens: int
    largest_block: int
    margin: float
    ours_cpu_ms: float
    straightforward_cpu_ms: float
    projection: int
    projected_ms: float
    projected_speedup: float
    projected_overlap: float
    projected_cosine_rms: float
    unsplit_ms: float | None = None
    unsplit_straightforward_ms: float | None = None
    unsplit_same_picks: bool | None = None


def benchmark_pruning(
    device: torch.device,
    repeats: int = 3,
    frames: int = 64,
    positions: int = 210,
    dim: int = 3584,
    projection: int = 256,
    is_uneven: bool = False,
    is_unsplit: bool = False,
) -> Iterator[Row]:
    """Measure every retention and number of segments; a first round warms up and gives the picks.

    `is_uneven` draws the segments' lengths at random, `is_unsplit` also times one segment as one block.
    """
    for retention in RETENTIONS:
        plan = plan_stages(frames * positions, NUM_LAYERS, retention, author_shape(retention))
        for segments in SEGMENTS:
            case = make_case(plan.counts[0], plan.counts[1], segments, dim, is_uneven, device)
            row = _measure(case, repeats, projection)
            unsplit = _measure_unsplit(case) if is_unsplit and segments == 1 else {}
            yield Row(retention=retention, live_tokens=plan.counts[0], segments=segments, **row, **unsplit)


def make_case(
    live: int, kept: int, segments: int, dim: int, is_uneven: bool, device: torch.device, seed: int = 0
) -> Case:
    """A video of `segments` scenes: tokens share their scene and their place in the frame, the rest is noise.

    Hidden states of transformers are far from round: the i-th direction has 1/i of the first one's variance.
    Relevance is the authors' min-max of the negative attention, nearly 1 but for a few tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    cuts = [round(live * i / segments) for i in range(segments + 1)]
    if is_uneven:
        inner = random.Random(seed).sample(range(1, live), segments - 1)  # noqa: S311  # a benchmark's input
        cuts = sorted([0, *inner, live])
    lengths = [end - start for start, end in itertools.pairwise(cuts)]
    scene = torch.repeat_interleave(torch.tensor(lengths))
    place = torch.randint(0, 210, (live,), generator=generator)
    features = torch.randn(live, dim, generator=generator)
    features += torch.randn(segments, dim, generator=generator)[scene]
    features += torch.randn(210, dim, generator=generator)[place]
    features *= torch.arange(1, dim + 1).rsqrt()
    attention = (2 * torch.randn(live, generator=generator)).softmax(0)
    values = torch.rand(segments, generator=generator).tolist()
    (counts,) = split_budgets([lengths], [kept], [values], [standard_scores(values)], True)
    weights = relevance(attention, "negative", "minmax")
    return Case(features.to(device), weights.to(device), lengths, counts)


def _measure(case: Case, repeats: int, projection: int) -> dict[str, float | int | bool]:
    """The columns of one row that come from running the case: all sides in turn, `repeats` times."""
    blocks = split_blocks(segment_blocks([case.lengths], [case.counts]), MAX_BLOCK)
    lengths, counts = blocks.sizes.tolist(), blocks.counts.tolist()
    sides: dict[str, Callable[[], list[torch.Tensor]]] = {
        "ours": lambda: _select(case, MAX_BLOCK),
        "straightforward": lambda: select_straightforwardly(case.features, case.relevance, lengths, counts, EPSILON),
        "projected": lambda: _select(case, MAX_BLOCK, projection),
    }
    picks = {name: side() for name, side in sides.items()}
    same, margin = agree(case.features, case.relevance, blocks, picks["ours"][0], picks["straightforward"], EPSILON)
    wall: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            wall_ms, cpu_ms = _time(side, case.features.device)
            wall[name].append(wall_ms)
            cpu[name].append(cpu_ms)
    ms = {name: statistics.median(times) for name, times in wall.items()}
    exact, projected = picks["ours"][0], picks["projected"][0]
    return {
        "ours_ms": ms["ours"],
        "straightforward_ms": ms["straightforward"],
        "speedup": ms["straightforward"] / ms["ours"],
        "same_picks": same,
        "kept_tokens": len(exact),
        "largest_block": max(lengths),
        "margin": margin,
        "ours_cpu_ms": statistics.median(cpu["ours"]),
        "straightforward_cpu_ms": statistics.median(cpu["straightforward"]),
        "projection": projection,
        "projected_ms": ms["projected"],
        "projected_speedup": ms["straightforward"] / ms["projected"],
        "projected_overlap": torch.isin(exact, projected).float().mean().item(),
        "projected_cosine_rms": _cosine_error(case.features[:512], projection),
    }


def _measure_unsplit(case: Case) -> dict[str, float | bool]:
    """One timed run of both sides with every segment in one block."""
    kept: list[list[torch.Tensor]] = []

    def straightforward() -> list[torch.Tensor]:
        return select_straightforwardly(case.features, case.relevance, case.lengths, case.counts, EPSILON)

    times = [
        _time(side, case.features.device, kept)[0] for side in (lambda: _select(case, max_block=None), straightforward)
    ]
    blocks = segment_blocks([case.lengths], [case.counts])
    same, _ = agree(case.features, case.relevance, blocks, kept[0][0], kept[1], EPSILON)
    return {"unsplit_ms": times[0], "unsplit_straightforward_ms": times[1], "unsplit_same_picks": same}


def _select(case: Case, max_block: int | None, projection: int | None = None) -> list[torch.Tensor]:
    return select_tokens(
        [case.features], [case.relevance], [case.lengths], [case.counts], max_block, EPSILON, projection
    )


def _time(
    side: Callable[[], list[torch.Tensor]], device: torch.device, results: list[list[torch.Tensor]] | None = None
) -> tuple[float, float]:
    """Wall and CPU time of one call in milliseconds, the device's work included; its result goes to `results`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    result = side()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elapsed = (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3
    if results is not None:
        results.append(result)
    return elapsed


def _cosine_error(features: torch.Tensor, projection: int) -> float:
    """Root mean square of (cosine after projection − cosine) over the pairs of `features` [n, d]."""
    exact, projected = unit(features), unit(project(features, projection))
    return (projected @ projected.T - exact @ exact.T).square().mean().sqrt().item()
