"""`python -m jobs.evaluate` from the command line to its files."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from jobs.evaluate import app


@pytest.fixture
def call(clip_cache: Path, tmp_path: Path):
    def run(command: str, *arguments: str) -> Result:
        folders = ["--cache", str(clip_cache), "--out", str(tmp_path)]
        return CliRunner().invoke(app, [command, *folders, *arguments])

    return run


def test_a_comparison_leaves_tables_and_a_figure_and_resumes(call, tmp_path: Path) -> None:
    asked = ["--clips", "3", "--questions", "2", "--captions", "1", "--method", "uniform@2", "--method", "hieravid"]
    first = call("compare", *asked, "--retention", "0.2", "--retention", "0.5")
    assert first.exit_code == 0, first.output
    cells = sorted(path.name for path in (tmp_path / "cells").iterdir())
    table = {
        (r["method"], r["comparison"], r["retention"]): r for r in pq.read_table(tmp_path / "table.parquet").to_pylist()
    }
    assert table.keys() == {("none", c, 1.0) for c in ("mean", "flops")} | {
        (method, c, r) for method in ("hieravid", "uniform") for c in ("mean", "flops") for r in (0.2, 0.5)
    }
    ours, equal = table["hieravid", "flops", 0.2], table["uniform", "flops", 0.2]
    assert ours["questions"] == 6
    assert equal["questions"] == 4
    assert equal["flops_ratio"] == pytest.approx(ours["flops_ratio"], rel=0.03)
    assert equal["retention_asked"] > 0.2
    assert len(cells) == 1 + 2 + 4, "HieraVid at equal FLOPs is HieraVid at equal retention"
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "| hieravid | 6 |" in (tmp_path / "table.md").read_text()
    assert {"kinds.parquet", "pairs.parquet"} <= {path.name for path in tmp_path.iterdir()}
    again = call("compare", *asked, "--retention", "0.2", "--retention", "0.5")
    assert again.exit_code == 0
    assert again.stderr == "", "no cell is left to compute"
    assert again.stdout == first.stdout


def test_an_unreachable_retention_is_a_row(call, tmp_path: Path) -> None:
    asked = ["--clips", "1", "--questions", "1", "--method", "fastv", "--retention", "0.1", "--comparison", "mean"]
    result = call("compare", *asked)
    assert result.exit_code == 0, result.output
    assert "unreachable (from 0.12" in result.stdout
    row = pq.read_table(tmp_path / "table.parquet").to_pylist()[1]
    assert (row["method"], row["status"]) == ("fastv", "unreachable")
    assert 0.12 < row["minimum"] < 0.13


def test_quantized_weights_and_a_smaller_cache_are_compared(call, tmp_path: Path) -> None:
    methods = ["none:kv_retention=0.5", "hieravid", "hieravid:kv_retention=0.5"]
    asked = ["--clips", "2", "--questions", "2", "--retention", "0.5", "--comparison", "mean"]
    asked += [argument for method in methods for argument in ("--method", method)]
    result = call("compare", *asked, "--quantization", "int8", "--workers", "2")
    assert result.exit_code == 0, result.output
    rows = {row["method"]: row for row in pq.read_table(tmp_path / "table.parquet").to_pylist()}
    assert list(rows) == ["none", *methods]
    for method in ("none", "hieravid"):
        half = rows[f"{method}:kv_retention=0.5"]
        assert half["kv_ratio"] < 0.75 * rows[method]["kv_ratio"]
        assert half["retention_achieved"] == rows[method]["retention_achieved"]
    cells = {path.name for path in (tmp_path / "cells").iterdir()}
    assert call("compare", *asked).exit_code == 0
    assert len({path.name for path in (tmp_path / "cells").iterdir()} - cells) == len(cells)


def test_two_processes_give_the_same_cells_as_one(call, tmp_path: Path) -> None:
    asked = ["--clips", "2", "--questions", "1", "--method", "random", "--retention", "0.3", "--comparison", "mean"]
    assert call("compare", *asked, "--workers", "2").exit_code == 0
    cells = tmp_path / "cells"
    shared = {path.name: pq.read_table(path).column("answer").to_pylist() for path in cells.iterdir()}
    for path in cells.iterdir():
        path.unlink()
    assert call("compare", *asked).exit_code == 0
    assert shared == {path.name: pq.read_table(path).column("answer").to_pylist() for path in cells.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--method", "unifrom"], "error: method unifrom: unknown method"),
        (["--method", "hieravid", "--method", "hieravid"], "error: method hieravid stands twice"),
        (["--method", "uniform@9", "--clips", "3"], "error: method uniform: asks for 9 clips, there are 3"),
        (["--retention", "1.5"], "error: --retention 1.5 is not allowed"),
        (["--first", "999999", "--clips", "3"], "error: the validation split has no 3 clips from 999999 on"),
        (["--model", "nowhere"], "error: --model nowhere: "),
        (["--quantization", "fp8", "--device", "cpu"], "error: --model builtin:tiny: quantization 'fp8' needs"),
    ],
)
def test_a_mistake_costs_one_line_and_exit_status_2(call, arguments: list[str], told: str, tmp_path: Path) -> None:
    result = call("compare", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(told)
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "table.parquet").exists()


def test_ablations_leave_their_table(call, tmp_path: Path) -> None:
    asked = ["--clips", "1", "--questions", "1", "--group", "budget", "--retention", "0.3"]
    result = call("ablate", *asked)
    assert result.exit_code == 0, result.output
    rows = pq.read_table(tmp_path / "ablations.parquet").to_pylist()
    assert [row["variant"] for row in rows] == ["default", "budget_coupling exact", "budget_coupling author"]
    assert "### budget" in (tmp_path / "ablations.md").read_text()


def test_calibration_gets_what_the_command_line_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: dict[str, object] = {}

    def calibrate(model: str, out: str, **settings: object) -> None:
        called.update(settings, model=model, out=out)

    monkeypatch.setattr("pipeline.evaluate.calibrate.calibrate", calibrate)
    asked = ["--out", "mine.json", "--clips", "7", "--retention", "0.1", "--retention", "0.4", "--workers", "2"]
    assert CliRunner().invoke(app, ["calibrate", *asked]).exit_code == 0
    assert (called["out"], called["clips"], called["retentions"], called["workers"]) == ("mine.json", 7, [0.4, 0.1], 2)
    assert (called["split"], called["manifest"]) == ("validation", None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["calibrate", "--out", "mine.json", "--clips", "1"], "error: clips = 1: at least 2"),
        (["ablate", "--group", "colour"], "error: unknown group of ablations 'colour', known: preset"),
        (["lmms", "--method", "oracle"], "error: "),
    ],
)
def test_mistakes_of_the_other_commands(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(told)
    assert result.stderr.count("\n") == 1
