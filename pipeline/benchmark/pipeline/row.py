"""What the benchmark tells of one setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """A setting, measured: the columns of the file that is written.

    `rows_per_s` is the rate over the middle 80 % of the run, `slowest_stage_rows_per_s` that of the
    slowest stage alone with the cores that it has in the run, `efficiency` their quotient; the last
    two are None where stages cost nothing and the run itself is what is measured. `driver_peak_mb` is
    the driver's largest resident memory in MiB.
    """

    setting: str
    rows: int
    rows_per_s: float
    slowest_stage_rows_per_s: float | None
    efficiency: float | None
    driver_peak_mb: float

    @classmethod
    def measured(cls, setting: str, rows: int, rate: float, slowest_stage: float | None, peak_mb: float) -> Row:
        """The row of one run."""
        return cls(setting, rows, rate, slowest_stage, rate / slowest_stage if slowest_stage else None, peak_mb)


def median_row(repeats: Sequence[Row]) -> Row:
    """The median of each number over runs of one setting and size."""
    first = repeats[0]
    alone = [row.slowest_stage_rows_per_s for row in repeats if row.slowest_stage_rows_per_s is not None]
    efficiencies = [row.efficiency for row in repeats if row.efficiency is not None]
    return Row(
        first.setting,
        first.rows,
        median(row.rows_per_s for row in repeats),
        median(alone) if alone else None,
        median(efficiencies) if efficiencies else None,
        median(row.driver_peak_mb for row in repeats),
    )
