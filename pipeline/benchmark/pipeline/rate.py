"""The rate of a run from the times at which its rows were finished."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

FEWEST_ROWS = 20


def middle_rate(finished_s: np.ndarray) -> float:
    """Rows a second over the middle 80 % of a run: float [rows], seconds, in any order.

    The first and the last tenth of the rows are left out, in which not every worker has work.
    Raises ValueError for fewer than `FEWEST_ROWS` rows, and where all came at one moment.
    """
    rows = len(finished_s)
    if rows < FEWEST_ROWS:
        raise ValueError(f"{rows} rows tell no rate, at least {FEWEST_ROWS} are needed")
    times = np.sort(finished_s)
    first, last = round(0.1 * rows), round(0.9 * rows) - 1
    took_s = float(times[last] - times[first])
    if took_s <= 0:
        raise ValueError("rows that all came at one moment tell no rate")
    return (last - first) / took_s


def finished_s(output: str) -> np.ndarray:
    """When each row of an output was finished, in no order: float64 [rows], seconds."""
    times = ds.dataset(f"{output}/results", format="parquet").to_table(columns=["finished_at"])["finished_at"]
    return times.cast(pa.int64()).to_numpy() / 1e6
