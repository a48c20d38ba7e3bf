"""The tokens and FLOPs of a job's rows at any retention, as the schedule fixes them before anything is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.budget.sample import ReadSample
from pruning import Pruner, StagePlan, UnreachableRetentionError, VideoGrid
from pruning.cost import DecoderShape, flops_ratio, prefill_flops


@dataclass(frozen=True)
class RowKind:
    """Rows that cost the same: `together` questions share one video; `retention` is the row's own, None: the job's."""

    grid: VideoGrid
    text_tokens: int
    retention: float | None
    max_new_tokens: int
    together: int


@dataclass(frozen=True)
class Tokens:
    """Sums over the rows of a sample, or scaled to those of a job.

    `kept` are video tokens, mean over the layers, so the results' `video_tokens * retention_achieved`; `stages` maps
    the first layer of each stage to the video tokens that its layers take. `flops` are the language model's
    prefill as the results' `flops_ratio` counts them, `whole_flops` those without pruning, `done_flops` what is
    computed when questions about one video share its prefill. `ratio` adds up the rows' `flops_ratio`.
    """

    rows: float
    video: float
    kept: float
    text: float
    stages: dict[int, float]
    stage_flops: dict[int, float]
    flops: float
    whole_flops: float
    done_flops: float
    ratio: float
    pruned: float  # video tokens of rows in which something is pruned

    def scaled(self, factor: float) -> Tokens:
        """All sums times `factor`."""
        numbers = {
            name: {layer: n * factor for layer, n in value.items()} if isinstance(value, dict) else value * factor
            for name, value in vars(self).items()
        }
        return Tokens(**numbers)


class Workload:
    """The kinds of rows in a sample, and what they come to at a retention."""

    def __init__(self, kinds: Counter[RowKind], shape: DecoderShape, pruner: Pruner) -> None:
        """`kinds` counts rows (any weights)."""
        self.kinds = kinds
        self._shape = shape
        self._pruner = pruner
        self._plans: dict[tuple[VideoGrid, float], StagePlan] = {}  # asked for again while a retention is looked for

    @property
    def rows(self) -> float:
        """All of them."""
        return sum(self.kinds.values())

    def least_retention(self) -> float:
        """The least that the method reaches on every video that has no retention of its own (1e-4 at the least)."""
        least = 1e-4
        for grid in {kind.grid for kind in self.kinds if kind.retention is None}:
            try:
                self._plan(grid, least)
            except UnreachableRetentionError as error:
                least = max(least, min(1.0, error.minimum * 1.0001))
        return least

    def _plan(self, grid: VideoGrid, retention: float) -> StagePlan:
        if (grid, retention) not in self._plans:
            self._plans[grid, retention] = self._pruner.plan(grid, self._shape.layers, retention)
        return self._plans[grid, retention]

    def tokens(self, retention: float) -> Tokens:
        """What the rows come to where the job asks for `retention`.

        A row whose own retention the method cannot reach fails at once in a run: it counts with its text only.
        """
        total = Counter[str]()
        stages, stage_flops = Counter[int](), Counter[int]()
        for kind, rows in self.kinds.items():
            asked = retention if kind.retention is None else kind.retention
            try:
                plan = self._plan(kind.grid, asked)
            except UnreachableRetentionError:
                continue
            counted = _row_tokens(plan, kind, self._shape, self._pruner)
            for name, number in counted.items():
                total[name] += number * rows
            ends = (*plan.layers[1:], plan.num_layers)
            for start, end, count in zip(plan.layers, ends, plan.counts, strict=True):
                stages[start] += count * rows
                stage_flops[start] += _layer_flops(self._shape, plan, kind.text_tokens, start, end) * rows
        names = ("video", "kept", "text", "flops", "whole_flops", "done_flops", "ratio", "pruned")
        numbers = {name: float(total[name]) for name in names}
        return Tokens(rows=self.rows, stages=dict(stages), stage_flops=dict(stage_flops), **numbers)


def row_kinds(
    videos: list[ReadSample],
    grid: Callable[[int, tuple[int, int]], VideoGrid],
    text_tokens: Callable[[str], int],
    max_new_tokens: int,
) -> Counter[RowKind]:
    """The rows of the sampled videos, each kept question standing for its part of its video's rows."""
    kinds: Counter[RowKind] = Counter()
    for video in videos:
        its_grid = grid(video.frame_count, video.size)
        for question in video.questions:
            kind = RowKind(
                its_grid,
                text_tokens(question.prompt),
                question.retention,
                question.max_new_tokens or max_new_tokens,
                video.rows,
            )
            kinds[kind] += video.rows / len(video.questions)
    return kinds


def done_flops(plan: StagePlan, text_tokens: int, together: int, shape: DecoderShape, pruner: Pruner) -> float:
    """A row's share of the FLOPs that are computed, where `together` questions on its video share what they can.

    Shared is the video up to the first stage that looks at the prompt, or all of it where the method never does.
    """
    whole = _layer_flops(shape, plan, text_tokens, 0, plan.num_layers)
    if together == 1 or pruner.needs.prompt:
        return whole
    parting = plan.layers[1] if pruner.needs.last_token_attention and len(plan.layers) > 1 else plan.num_layers
    shared = _layer_flops(shape, plan, 0, 0, parting)
    return whole - shared * (1 - 1 / together)


def _row_tokens(plan: StagePlan, kind: RowKind, shape: DecoderShape, pruner: Pruner) -> dict[str, float]:
    text = kind.text_tokens
    whole = [plan.num_tokens + text] * plan.num_layers
    return {
        "video": plan.num_tokens,
        "kept": plan.num_tokens * plan.retention,
        "text": text,
        "flops": _layer_flops(shape, plan, text, 0, plan.num_layers),
        "whole_flops": prefill_flops(shape, whole, whole),
        "done_flops": done_flops(plan, text, kind.together, shape, pruner),
        "ratio": flops_ratio(shape, plan, text),
        "pruned": plan.num_tokens if plan.retention < 1 else 0,
    }


def _layer_flops(shape: DecoderShape, plan: StagePlan, text: int, start: int, end: int) -> int:
    """Prefill FLOPs of the layers from `start` up to `end`."""
    attention = [n + text for n in plan.attention_tokens()[start:end]]
    mlp = [n + text for n in plan.mlp_tokens()[start:end]]
    return prefill_flops(replace(shape, layers=end - start), attention, mlp)
