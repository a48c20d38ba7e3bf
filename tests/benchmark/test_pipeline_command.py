"""`python -m jobs.benchmark pipeline`: real runs at a toy size, a table and a file."""

import json

import pytest
from typer.testing import CliRunner

import jobs.benchmark
from pipeline.benchmark.pipeline import demo_runs, driver, measure


def call(*arguments):
    return CliRunner().invoke(jobs.benchmark.app, ["pipeline", *map(str, arguments)])


@pytest.mark.timeout(900)  # two clusters
def test_it_measures_runs_and_stages_and_writes_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # on a machine with other work Ray's workers would wait for ever
    monkeypatch.setattr(measure, "BALANCES", measure.BALANCES[:1])
    monkeypatch.setattr(measure, "WORKS", measure.WORKS[:1])
    monkeypatch.setattr(demo_runs, "_LARGE", (160, 96))
    monkeypatch.setattr(demo_runs, "_LARGE_CLIPS", 2)
    file = tmp_path / "out" / "rows.json"
    done = call("--rows=20", "--repeats=1", "--cache", tmp_path / "cache", "--json", file)
    assert done.exit_code == 0, done.output
    rows = json.loads(file.read_text())
    assert [row["setting"] for row in rows] == ["stub, decode-bound", "demo, decode-bound"]
    for row in rows:
        columns = ["setting", "rows", "rows_per_s", "slowest_stage_rows_per_s", "efficiency", "driver_peak_mb"]
        assert list(row)[:6] == columns
        assert row.keys() > {"device", "commit", "measured_at"}
        assert row["rows"] == 20
        assert row["efficiency"] == row["rows_per_s"] / row["slowest_stage_rows_per_s"] > 0
        assert row["driver_peak_mb"] > 100
    assert rows[0]["slowest_stage_rows_per_s"] == 16
    assert sum(line.startswith(("  pass", "  FAIL")) for line in done.output.splitlines()) == 2


def test_an_unknown_setting_is_refused_in_a_line():
    done = call("--setting=all")
    assert done.exit_code == 2
    assert done.stderr == "error: --setting all: there are only stub, demo, curve, curve-single\n"


def test_a_run_that_fails_is_told_by_its_last_line(tmp_path):
    order = driver.Order("qa", (f"manifest={tmp_path / 'none.jsonl'}", f"output={tmp_path}"), str(tmp_path / "told"))
    with pytest.raises(driver.DriverError, match=r"the run ended with 1: .*none.jsonl"):
        driver.run(order)
