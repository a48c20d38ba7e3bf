"""The report as one HTML file: every number in it was added up from the result rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.report import forms
from pipeline.report.compare import side_by_side
from pipeline.report.cost import cost
from pipeline.report.found import FoundRun
from pipeline.report.outcome import failures, run_line, totals
from pipeline.report.parts import Section, Tile
from pipeline.report.rows import Rows
from pipeline.report.shots import samples
from pipeline.report.timing import latency, throughput, time_spent
from pipeline.report.tokens import retention, tokens
from pipeline.report.videos import videos

_HERE = Path(__file__).parent


def make_report(runs: Sequence[FoundRun], usd_per_gpu_hour: float | None = None) -> str:
    """The page about a run, or about two side by side. It loads nothing and runs no script.

    Raises UserError for result files that cannot be read, ClusterError where the storage cannot be reached.
    """
    with TemporaryDirectory(prefix="hieravid-report-") as scratch:
        rows = Rows(runs, Path(scratch))
        try:
            return _page(rows, usd_per_gpu_hour)
        finally:
            rows.close()


def _page(rows: Rows, usd_per_gpu_hour: float | None) -> str:
    told = [totals(rows, number) for number in range(len(rows.runs))]
    sections: list[Section] = []
    if len(told) == 2:
        sections.append(side_by_side(rows, told))
    sections += [
        failures(rows, told),
        throughput(rows, told),
        time_spent(rows),
        latency(rows),
        tokens(rows, told),
        retention(rows),
        samples(rows),
        videos(rows),
        cost(rows, told, usd_per_gpu_hour),
    ]
    lines = [run_line(run, number, one) for number, (run, one) in enumerate(zip(rows.runs, told, strict=True))]
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["printable"] = forms.printable
    return environment.get_template("page.html.j2").render(
        title=" and ".join(forms.printable(line.name, 80) for line in lines),
        runs=lines,
        tiles=[tile for tile in _tiles(told) if any(value != forms.NONE for value in tile.values)],
        sections=sections,
        made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
    )


def _tiles(told: list[dict]) -> list[Tile]:
    """The numbers at the top."""
    failed = any(one["errors"] for one in told)
    kept = [_kept(one) for one in told]
    return [
        Tile("rows answered", tuple(forms.count(one["ok"]) for one in told)),
        Tile("failed", tuple(forms.share(one["failed_share"]) for one in told), mood="bad" if failed else ""),
        Tile("videos a minute", tuple(forms.rate(one["videos_per_min"]) for one in told)),
        Tile("tokens kept", tuple(forms.share(part) for part in kept)),
        Tile("prefill FLOPs left", tuple(forms.share(one["flops_ratio"]) for one in told)),
    ]


def _kept(told: dict) -> float | None:
    return (
        told["kept_tokens"] / told["video_tokens"] if told["video_tokens"] and told["kept_tokens"] is not None else None
    )
