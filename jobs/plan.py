"""What a job will cost, before it runs: `python -m jobs.plan --config FILE [key.path=value …]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from jobs.exits import exit_status
from jobs.options import Overrides
from jobs.tables import named_values
from pipeline.config import Task
from pipeline.config_load import load_config
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.budget.check import Compared
    from pipeline.budget.cost import Estimate
    from pipeline.budget.forecast import Forecast

_EXIT_STATUS = (
    "Exit status: 0 done; 2 something of the job must be changed, its budget is out of reach for one; 3 storage failed."
)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    help="Count a job's rows, read and time a few of its videos, and print what it will cost, and the retention that "
    f"meets its budget. No cluster is started, and nothing is written.\n\n{_EXIT_STATUS}"
)
def main(
    config: Annotated[Path, typer.Option(help="the job file, YAML")],
    overrides: Overrides = None,
    task: Annotated[str | None, typer.Option(help="caption or qa, where the job file does not say")] = None,
    videos: Annotated[int, typer.Option(min=1, help="how many of the videos are read")] = 32,
    profile: Annotated[
        str | None,
        typer.Option(
            help="in place of this machine's timings those of a run (its folder or output) or that --save-profile wrote"
        ),
    ] = None,
    save_profile: Annotated[str | None, typer.Option(help="write this machine's timings to a file")] = None,
    check: Annotated[str | None, typer.Option(help="a run folder: what that job came to, beside the plan")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object in place of tables")] = False,
) -> None:
    """Print the plan."""
    with exit_status():
        if profile and save_profile:
            raise UserError("--profile reads timings, --save-profile measures them: give one of them")
        job = load_config(config, overrides or [], _task(task))
        from pipeline.budget.check import compare, read_finished  # late: these load torch
        from pipeline.budget.forecast import forecast
        from pipeline.budget.profile import save_profile as save

        run = read_finished(check) if check else None
        plan = forecast(job, videos, profile, lambda step: print(step, file=sys.stderr))
        if save_profile:
            save(plan.profile, save_profile)
        compared = compare(plan, run) if run else []
        if as_json:
            told = [{"name": one.name, "predicted": one.predicted, "actual": one.actual} for one in compared]
            print(json.dumps({**plan.to_json(), **({"check": told} if run else {})}, indent=2))
            return
        _show(plan)
        if compared:
            _show_check(compared)


def _task(name: str | None) -> Task | None:
    if name is None or name == "caption" or name == "qa":
        return name
    raise UserError(f"--task {name}: caption or qa")


def _show(plan: Forecast) -> None:
    Console().print(named_values(f"plan · {plan.config.task} · {plan.config.name}", plan_rows(plan)))
    stages = Table(title="language model, by stage", title_justify="left")
    for column in ("from layer", "video tokens", "of the unpruned", "prefill TFLOP"):
        stages.add_column(column, justify="right")
    tokens = plan.chosen.tokens
    for layer in sorted(tokens.stages):
        kept = tokens.stages[layer]
        share = f"{kept / tokens.video:.1%}" if tokens.video else "none"
        stages.add_row(str(layer), f"{kept:,.0f}", share, f"{tokens.stage_flops[layer] / 1e12:,.4g}")
    Console().print(stages)


def plan_rows(plan: Forecast) -> list[tuple[str, str]]:
    """The lines of the table: a name and a value each."""
    census, sample, chosen, unpruned = plan.census, plan.sample, plan.chosen, plan.unpruned
    budget, tokens = plan.config.budget, plan.chosen.tokens
    failed = f", {sum(sample.failures.values())} of them unreadable" if sample.failures else ""
    share = plan.accuracy_share
    hours = "GPU-hours" if plan.costs.pools.gpus else "answerer-hours"
    return [
        ("budget", f"{budget.key} {getattr(budget, budget.key):g}"),
        ("retention", f"{chosen.retention:.4g}"),
        ("accuracy", "unknown" if share is None else f"{share:.1%} of the unpruned model's"),
        ("rows", f"{census.rows:,}" + (f", {census.refused:,} of them refused" if census.refused else "")),
        ("videos", f"{census.videos:,}; {sample.asked:,} read{failed}: {_kinds(plan)}"),
        ("video tokens", f"{tokens.video:,.0f} in → {tokens.kept:,.0f} kept"),
        ("text tokens", f"{tokens.text:,.0f} of prompts, about {chosen.output_tokens:,.0f} of answers"),
        ("prefill", f"{tokens.flops / 1e12:,.4g} TFLOP, {chosen.flops_ratio:.1%} of the unpruned"),
        ("model", f"{_hours(chosen.model_hours)} busy ({_hours(unpruned.model_hours)} unpruned): {_phases(chosen)}"),
        (hours, f"{_hours(chosen.gpu_hours)} held ({_hours(unpruned.gpu_hours)} unpruned){_no_gpu(plan)}"),
        ("CPU-hours", _hours(chosen.cpu_hours)),
        ("duration", f"{_hours(chosen.duration_s / 3600)} without starting; bottleneck: {chosen.bottleneck}"),
        ("to fetch", f"{chosen.bytes / 1e6:,.1f} MB of {_file_bytes(plan) / 1e6:,.1f} MB"),
        ("cost", "unknown: no budget.usd_per_gpu_hour" if chosen.usd is None else f"{chosen.usd:,.2f} USD"),
        ("timed on", f"{plan.profile.machine}, {plan.profile.dtype}, {plan.profile.threads} threads"),
    ]


def _kinds(plan: Forecast) -> str:
    seen: dict[str, int] = {}
    for video in plan.sample.videos:
        name = f"{video.codec} {video.shown}"
        seen[name] = seen.get(name, 0) + 1
    names = sorted(seen, key=lambda name: -seen[name])
    more = f" and {len(names) - 3} other kinds" if len(names) > 3 else ""
    lengths = sorted(video.duration_s for video in plan.sample.videos if video.duration_s is not None)
    middle = f", {lengths[len(lengths) // 2]:.3g} s in the middle" if lengths else ""
    return ", ".join(names[:3]) + more + middle


def _file_bytes(plan: Forecast) -> float:
    return sum(video.file_bytes for video in plan.sample.videos) / len(plan.sample.videos) * plan.costs.videos


def _no_gpu(plan: Forecast) -> str:
    return "" if plan.costs.pools.gpus else "; no GPU: the answerers' own hours stand in"


def _phases(estimate: Estimate) -> str:
    names = ("vision", "prune", "prefill", "generate")
    whole = sum(estimate.busy_s[name] for name in names) or 1.0
    return ", ".join(f"{name} {estimate.busy_s[name] / whole:.0%}" for name in names)


def _hours(hours: float) -> str:
    return (
        f"{hours:,.2f} h" if hours >= 1 else f"{hours * 60:,.1f} min" if hours >= 1 / 60 else f"{hours * 3600:,.2f} s"
    )


def _show_check(compared: list[Compared]) -> None:
    table = Table(title="plan and run", title_justify="left")
    for column in ("", "predicted", "actual", "off"):
        table.add_column(column, justify="right" if column else "left")
    for one in compared:
        off = "" if one.off is None else f"{one.off:+.1%}"
        table.add_row(one.name, f"{one.predicted:,.5g}", f"{one.actual:,.5g}", off)
    Console().print(table)


if __name__ == "__main__":
    app()
