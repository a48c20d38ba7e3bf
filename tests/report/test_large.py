"""A report over a hundred thousand rows: within a minute, and small enough to send."""

import time

import pytest

from jobs.report import main
from tests.report.runs import RUN_A, RUN_B, answered, failed, write_run

ROWS = 100_000


@pytest.mark.soak
def test_a_hundred_thousand_rows_take_a_minute_and_five_megabytes_at_most(tmp_path, capsys):
    rows = [
        failed(n, ("not_found", "decode_failed", "truncated")[n % 3]) if n % 20 == 0 else answered(n, total_ms=50.0 + n)
        for n in range(ROWS)
    ]
    first = write_run(str(tmp_path), rows, RUN_A, files=256)
    write_run(str(tmp_path), rows[: ROWS // 2], RUN_B, files=128)
    for other in (None, RUN_B):
        begun = time.monotonic()
        main(first, other, str(tmp_path / "report.html"), 2.0)
        took_s = time.monotonic() - begun
        size = (tmp_path / "report.html").stat().st_size
        with capsys.disabled():
            print(f"{ROWS:,} rows{' beside 50,000' if other else ''}: {took_s:.1f} s, {size / 1e6:.2f} MB")
        assert took_s < 60
        assert size < 5_000_000
