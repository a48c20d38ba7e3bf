"""Tables say what the cells' records say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.evaluate.cells import CAPTION, RECORD_SCHEMA, write_records
from pipeline.evaluate.compare import Entry
from pipeline.evaluate.markdown import comparison_markdown, share_table, verdict_list
from pipeline.evaluate.origin import Origin
from pipeline.evaluate.scores import Scores, read_scores
from pipeline.evaluate.table import (
    KIND_SCHEMA,
    PAIR_SCHEMA,
    TABLE_SCHEMA,
    cell_rows,
    kind_rows,
    pair_rows,
    write_table,
)
from pipeline.evaluate.variants import Variant
from pipeline.evaluate.workload import Budget, Unreachable
from pruning import StagePlan

ORIGIN = Origin("2026-01-01", "2 CPU cores", "abc1234", "python -m jobs.evaluate compare")
CLIPS, ASKED = 40, 5


def records(wrong: float, seed: int = 0, clips: int = CLIPS, captions: int = 0) -> pa.Table:
    """Questions of which a share `wrong` is answered wrongly, and captions that score 0.5."""
    draws = np.random.default_rng(seed).random((CLIPS, ASKED))
    rows = []
    for clip in range(clips):
        for number in range(ASKED):
            right = bool(draws[clip, number] >= wrong)
            kind = ("colour", "order")[number % 2]
            costs = {"retention_achieved": 0.3, "flops_ratio": 0.28, "kv_ratio": 0.37}
            times = {"prune_ms": 2.0, "prefill_ms": 10.0}
            asked = {"seed": clip, "number": number, "kind": kind, "prompt": f"{clip} {number}"}
            rows.append({**asked, "correct": right, "score": float(right), **costs, **times})
    rows += [{"seed": clip, "number": 0, "kind": CAPTION, "prompt": "?", "score": 0.5} for clip in range(captions)]
    return pa.Table.from_pylist(rows, schema=RECORD_SCHEMA)


@pytest.fixture
def scored(tmp_path: Path):
    def score(wrong: float, **given: int) -> Scores:
        write_records(records(wrong, **given), tmp_path / "cell.parquet")
        return read_scores(tmp_path / "cell.parquet")

    return score


BUDGET = Budget(0.3, StagePlan(100, 4, (0,), (30,)))


@pytest.fixture
def entries(scored) -> list[Entry]:
    """HieraVid loses 5 % of its answers, uniform 30 %, evs is asked half of the questions, fastv is out of reach."""
    found = []
    for comparison in ("mean", "flops"):
        found += [
            Entry(Variant("none", "none"), comparison, 1.0, BUDGET, scored(0.02)),
            Entry(Variant("hieravid", "hieravid"), comparison, 0.3, BUDGET, scored(0.05, captions=3)),
            Entry(Variant("uniform", "uniform"), comparison, 0.3, BUDGET, scored(0.30)),
            Entry(Variant("evs", "evs", clips=20), comparison, 0.3, BUDGET, scored(0.05, clips=20)),
            Entry(Variant("fastv", "fastv"), comparison, 0.3, Unreachable(0.41)),
        ]
    return found


def test_scores_are_sums_over_the_records(scored) -> None:
    scores, table = scored(0.3, captions=4), records(0.3).to_pydict()
    assert scores.total.accuracy == pytest.approx(np.mean(table["score"]))
    assert scores.total.asked.tolist() == [ASKED] * CLIPS
    assert scores.kinds["order"].asked.tolist() == [2] * CLIPS
    order = [s for s, kind in zip(table["score"], table["kind"], strict=True) if kind == "order"]
    assert scores.kinds["order"].accuracy == pytest.approx(np.mean(order))
    assert (scores.caption_score, scores.captions) == (0.5, 4)
    assert scores.costs["prefill_ms"] == 10.0


def test_the_table_begins_with_the_promised_columns(entries: list[Entry], tmp_path: Path) -> None:
    write_table(cell_rows(entries), TABLE_SCHEMA, tmp_path / "table.parquet", ORIGIN.facts())
    table = pq.read_table(tmp_path / "table.parquet")
    promised = (
        "method comparison retention retention_achieved flops_ratio kv_ratio questions accuracy accuracy_share "
        "ci_low ci_high caption_score prune_ms prefill_ms"
    )
    assert table.column_names[:14] == promised.split()
    assert table.schema.metadata[b"commit"] == b"abc1234"
    assert table.num_rows == len(entries)


def test_shares_are_of_the_unpruned_accuracy_on_the_same_questions(entries: list[Entry], scored) -> None:
    rows = {row["method"]: row for row in cell_rows(entries) if row["comparison"] == "mean"}
    assert rows["none"]["accuracy_share"] == rows["none"]["ci_low"] == rows["none"]["ci_high"] == 1.0
    uniform, whole = rows["uniform"], rows["none"]
    assert uniform["accuracy_share"] == pytest.approx(uniform["accuracy"] / whole["accuracy"])
    assert uniform["ci_low"] < uniform["accuracy_share"] < uniform["ci_high"]
    half = scored(0.02, clips=20).total.accuracy
    assert rows["evs"]["questions"] == 100
    assert rows["evs"]["accuracy_share"] == pytest.approx(rows["evs"]["accuracy"] / half)
    assert (rows["hieravid"]["caption_score"], rows["hieravid"]["captions"]) == (0.5, 3)


def test_an_unreachable_cell_is_a_row_with_its_minimum_and_nothing_else(entries: list[Entry], tmp_path: Path) -> None:
    write_table(cell_rows(entries), TABLE_SCHEMA, tmp_path / "table.parquet", {})
    row = next(r for r in pq.read_table(tmp_path / "table.parquet").to_pylist() if r["method"] == "fastv")
    filled = {name: value for name, value in row.items() if value is not None}
    assert filled == {
        "method": "fastv",
        "comparison": "mean",
        "retention": 0.3,
        "status": "unreachable",
        "minimum": 0.41,
    }


def test_pairs_are_told_as_wins_and_ties(entries: list[Entry]) -> None:
    rows = {row["peer"]: row for row in pair_rows(entries) if row["comparison"] == "mean"}
    assert rows.keys() == {"uniform", "evs"}
    assert rows["uniform"]["verdict"] == "win"
    assert rows["uniform"]["ci_low"] > 0
    assert (rows["evs"]["verdict"], rows["evs"]["difference"], rows["evs"]["questions"]) == ("tie", 0.0, 100)


def test_a_better_peer_is_told_as_a_loss(scored) -> None:
    ours = Entry(Variant("hieravid", "hieravid"), "mean", 0.3, BUDGET, scored(0.30))
    peer = Entry(Variant("uniform", "uniform"), "mean", 0.3, BUDGET, scored(0.05))
    assert [row["verdict"] for row in pair_rows([ours, peer])] == ["loss"]


def test_kinds_add_up_to_the_whole(entries: list[Entry], tmp_path: Path) -> None:
    rows = [row for row in kind_rows(entries) if (row["method"], row["comparison"]) == ("uniform", "mean")]
    assert {row["kind"]: row["questions"] for row in rows} == {"colour": 3 * CLIPS, "order": 2 * CLIPS}
    whole = next(row for row in cell_rows(entries) if row["method"] == "uniform")
    assert sum(row["accuracy"] * row["questions"] for row in rows) == pytest.approx(whole["accuracy"] * 5 * CLIPS)
    write_table(rows, KIND_SCHEMA, tmp_path / "kinds.parquet", {})
    write_table(pair_rows(entries), PAIR_SCHEMA, tmp_path / "pairs.parquet", {})


def test_cells_about_other_questions_cannot_be_compared(scored, tmp_path: Path) -> None:
    other = records(0.1).to_pylist()
    other[7]["prompt"] = "another one"
    write_records(pa.Table.from_pylist(other, schema=RECORD_SCHEMA), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="same questions"):
        scored(0.1).share_of(read_scores(tmp_path / "other.parquet"))


def test_markdown_holds_shares_minima_and_origin(entries: list[Entry]) -> None:
    cells, pairs = cell_rows(entries), pair_rows(entries)
    text = comparison_markdown(cells, pairs, kind_rows(entries), ORIGIN)
    uniform = next(row for row in cells if row["method"] == "uniform")
    assert f"| {100 * uniform['accuracy_share']:.1f} ({100 * uniform['ci_low']:.1f} to" in text
    assert "unreachable (from 0.410)" in text
    assert "commit abc1234: `python -m jobs.evaluate compare`" in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2 + 2 * 3
    for block in tables:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_markdown_has_a_row_a_method_and_a_column_a_retention(entries: list[Entry]) -> None:
    lines = share_table([row for row in cell_rows(entries) if row["comparison"] == "mean"]).splitlines()
    assert lines[0] == "| method | questions | 0.3 |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["none", "hieravid", "uniform", "evs", "fastv"]


def test_the_verdict_list_counts_each_comparison(entries: list[Entry]) -> None:
    lines = verdict_list(pair_rows(entries)).splitlines()
    assert "- Wins, equal retention (1): uniform at 0.3" in lines
    assert "- Ties, equal FLOPs (1): evs at 0.3" in lines
    assert "- Losses, equal FLOPs (0): none" in lines
