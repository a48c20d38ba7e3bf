"""A forecast beside the run that followed."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.budget.forecast import Forecast
from pipeline.errors import UserError
from pipeline.storage import join, read_bytes
from pipeline.summary import RunSummary, parse_summary


@dataclass(frozen=True)
class Compared:
    """One number of a forecast, and what it came to."""

    name: str
    predicted: float
    actual: float

    @property
    def off(self) -> float | None:
        """By how much of the actual number the forecast was off; None where that is 0."""
        return self.predicted / self.actual - 1 if self.actual else None


def read_finished(folder: str) -> RunSummary:
    """The summary in a run folder. Raises UserError where there is none, or rows of the run are left."""
    summary = parse_summary(read_bytes(join(folder, "summary.json")))
    if summary is None:
        raise UserError(f"{folder}/summary.json is not of this version of the program")
    if summary.rows < summary.manifest_rows:
        raise UserError(f"{folder}: {summary.rows} of {summary.manifest_rows} rows are answered; wait for the others")
    return summary


def compare(plan: Forecast, run: RunSummary) -> list[Compared]:
    """The numbers that both know, tokens first; `model` is vision, pruning, prefill and generation together.

    The run's are at the retention that its rows got on average, the forecast's at that of its budget: the same job.
    """
    chosen, busy = plan.chosen, plan.chosen.busy_s
    ran_s = {stage.removesuffix("_ms"): ms / 1e3 for stage, ms in run.stage_ms.items()}
    phases = ("vision", "prune", "prefill", "generate")
    return [
        Compared("rows answered", plan.costs.rows, run.ok),
        Compared("video tokens", chosen.tokens.video, run.video_tokens),
        Compared("kept tokens", chosen.tokens.kept, run.kept_tokens),
        Compared("prompt tokens", chosen.tokens.text, run.prompt_tokens),
        Compared("output tokens", chosen.output_tokens, run.output_tokens),
        Compared("model s", sum(busy[phase] for phase in phases), sum(ran_s[phase] for phase in phases)),
        *(Compared(f"{phase} s", busy[phase], ran_s[phase]) for phase in (*phases, "decode", "fetch")),
    ]
