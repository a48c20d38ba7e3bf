"""What a budget costs where the method's counts depend on the video, so that its plan is only a bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pipeline.engine import AnswerStats, Request, VideoLLM
from pipeline.evaluate.clips import EncodedClip
from pipeline.evaluate.workload import Budget, Unreachable, Workload, at_flops, at_retention
from pipeline.prompts import with_options
from pruning import Pruner, StagePlan

SAMPLE_CLIPS = 24
NEAR_ENOUGH = 0.005  # of the FLOPs that are looked for


@dataclass(frozen=True)
class Sample:
    """A few clips to try budgets on, one question each."""

    llm: VideoLLM
    clips: Sequence[EncodedClip]

    def at_flops(self, pruner: Pruner, workload: Workload, target: float) -> Budget | Unreachable:
        """As `workload.at_flops`, but with costs measured on the sample where the method departs from its plan."""
        if self._keeps_its_plan(pruner, workload, target):
            return at_flops(pruner, workload, target)
        return at_flops(pruner, workload, target, lambda budget: self.flops(pruner, workload, budget), NEAR_ENOUGH)

    def _keeps_its_plan(self, pruner: Pruner, workload: Workload, retention: float) -> bool:
        """Whether the counts of the plan at a retention, or at the least above it, are those that come out."""
        budget = at_retention(pruner, workload, retention)
        if isinstance(budget, Unreachable):
            budget = at_retention(pruner, workload, min(1.0, budget.minimum * 1.001))
        if isinstance(budget, Unreachable):
            raise RuntimeError(f"{pruner.name} cannot reach the minimum that it names, {budget.minimum:g}")
        return all(stats.retention_achieved == budget.plan.retention for stats in self._try(pruner, budget))

    def flops(self, pruner: Pruner, workload: Workload, budget: Budget) -> float:
        """Mean FLOPs ratio of the counts that come out, at the workload's number of text tokens."""
        return fmean(
            workload.flops(
                StagePlan(
                    stats.video_tokens, workload.shape.layers, tuple(stats.stage_layers), tuple(stats.stage_tokens)
                )
            )
            for stats in self._try(pruner, budget)
        )

    def _try(self, pruner: Pruner, budget: Budget) -> list[AnswerStats]:
        requests = [
            Request(
                clip.video,
                with_options(clip.questions[0].text, clip.questions[0].options),
                max_new_tokens=1,
                seed=clip.seed,
                retention=budget.retention,
            )
            for clip in self.clips
        ]
        return [answer.stats for answer in self.llm.answer(requests, pruner)]
