"""A table of what was measured, and the aims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from pipeline.benchmark.check import Check
from pipeline.benchmark.pipeline.row import Row

_LEAST_EFFICIENCY = {"stub": 0.9, "demo": 0.75}
_MOST_MEMORY, _MOST_TIME = 1.1, 1.15  # of a run with ten times the rows, beside the smaller one
_FLAT_FROM = 10_000  # rows; in a smaller run the start is most of what is seen


def as_table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    table = Table(title="Whole runs", title_justify="left")
    table.add_column("setting")
    for name in ("rows", "rows/s", "slowest stage alone", "efficiency", "driver's peak MiB"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.setting,
            f"{row.rows:,}",
            f"{row.rows_per_s:,.2f}",
            "–" if row.slowest_stage_rows_per_s is None else f"{row.slowest_stage_rows_per_s:,.2f} rows/s",
            "–" if row.efficiency is None else f"{row.efficiency:.1%}",
            f"{row.driver_peak_mb:,.0f}",
        )
    return table


def check_rows(rows: Sequence[Row]) -> list[Check]:
    """How efficient runs should be; and that neither memory nor the time for a row grows with a run."""
    checks = [
        Check(f"{row.setting}: efficiency", row.efficiency, _LEAST_EFFICIENCY[row.setting.split(",")[0]], False, "%")
        for row in rows
        if row.efficiency is not None
    ]
    return checks + [check for pair in _growing(rows) for check in _flat(*pair)]


def _growing(rows: Sequence[Row]) -> Iterable[tuple[Row, Row]]:
    """Pairs of runs of one curve, the smallest of those that are long enough with each larger one."""
    for setting in dict.fromkeys(row.setting for row in rows if row.efficiency is None):
        first, *larger = [row for row in rows if row.setting == setting and row.rows >= _FLAT_FROM] or [None]
        yield from ((first, row) for row in larger if first is not None)


def _flat(small: Row, large: Row) -> list[Check]:
    sizes = f"{large.setting}, {large.rows:,} rows beside {small.rows:,}"
    return [
        Check(f"{sizes}: driver's peak memory", large.driver_peak_mb / small.driver_peak_mb, _MOST_MEMORY, True),
        Check(f"{sizes}: time for a row", small.rows_per_s / large.rows_per_s, _MOST_TIME, True),
    ]
