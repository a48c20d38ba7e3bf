"""All runs of a setting, one at a time, each in a new folder that is gone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pipeline.benchmark.pipeline.demo_runs import WORKS, make_manifest, measure_work
from pipeline.benchmark.pipeline.raylets import raylets
from pipeline.benchmark.pipeline.row import Row, median_row
from pipeline.benchmark.pipeline.stub_runs import BALANCES, CORES, NODES, measure_balance, measure_cost

Setting = Literal["stub", "demo", "curve", "curve-single"]
ROWS: dict[Setting, tuple[int, ...]] = {
    "stub": (320,),
    "demo": (96,),
    "curve": (1_000, 10_000, 100_000),
    "curve-single": (1_000, 10_000, 100_000),
}
"""How many rows the runs of a setting have where the call does not say."""
_ROWS_PER_VIDEO = {"curve": 10, "curve-single": 1}
_Run = Callable[[Path], Row]


def measure(
    setting: Setting, sizes: Sequence[int], repeats: int, cache: Path, report: Callable[[str], None]
) -> list[Row]:
    """A row for each case of a setting and each number of rows in `sizes`.

    Medians of `repeats` runs, in turns; the curve's runs are long, and done once. `report` is told
    what is being done; clips are kept in `cache`. Raises DriverError where a run fails.
    """
    measured: dict[_Run, list[Row]] = {}
    with TemporaryDirectory(prefix="hieravid-benchmark-") as scratch, _cases(setting, sizes, cache, report) as cases:
        turns = 1 if setting in _ROWS_PER_VIDEO else repeats
        for turn in range(turns):
            for number, run in enumerate(cases):
                report(f"measuring {setting}, {number + 1} of {len(cases)}, turn {turn + 1} of {turns}")
                measured.setdefault(run, []).append(run(Path(scratch) / f"{turn}-{number}"))
    return [median_row(same) for same in measured.values()]


@contextmanager
def _cases(
    setting: Setting, sizes: Sequence[int], cache: Path, report: Callable[[str], None]
) -> Iterator[Sequence[_Run]]:
    """What is measured in each turn; as long as the block lasts there is what it needs."""
    if setting == "stub":
        report("starting the cluster")
        with raylets(NODES, CORES) as address:
            yield [partial(measure_balance, balance, size, address) for size in sizes for balance in BALANCES]
    elif setting == "demo":
        report("making the clips")
        yield [partial(measure_work, work, size, make_manifest(work, size, cache)) for size in sizes for work in WORKS]
    else:
        yield [partial(measure_cost, setting, size, _ROWS_PER_VIDEO[setting]) for size in sizes]
