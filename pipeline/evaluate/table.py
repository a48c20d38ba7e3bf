"""The tables of a comparison: one row a cell, one row a cell and kind of question, one row a pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluate.bootstrap import Estimate
from pipeline.evaluate.compare import REFERENCE, Entry
from pipeline.evaluate.scores import COSTS, Scores
from pipeline.evaluate.variants import UNPRUNED
from pipeline.evaluate.workload import Budget

TABLE_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("comparison", pa.string()),  # mean: equal mean-over-layers retention; flops: equal prefill FLOPs
        ("retention", pa.float64()),  # of the comparison: what HieraVid was asked for
        ("retention_achieved", pa.float64()),
        ("flops_ratio", pa.float64()),
        ("kv_ratio", pa.float64()),
        ("questions", pa.int64()),
        ("accuracy", pa.float64()),
        ("accuracy_share", pa.float64()),  # of the unpruned accuracy on the same questions, 95 % interval
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("caption_score", pa.float64()),  # F1 over facts
        ("prune_ms", pa.float64()),  # a question's share, under whatever load the machine had
        ("prefill_ms", pa.float64()),
        ("captions", pa.int64()),
        ("status", pa.string()),  # ok, or unreachable: then nothing is measured
        ("minimum", pa.float64()),  # of an unreachable one: the least retention (mean) or FLOPs ratio (flops)
        ("retention_asked", pa.float64()),  # of the method itself, which equal FLOPs came to
    ]
)
KIND_SCHEMA = pa.schema(
    [
        ("method", pa.string()),
        ("comparison", pa.string()),
        ("retention", pa.float64()),
        ("kind", pa.string()),
        ("questions", pa.int64()),
        ("accuracy", pa.float64()),
        ("accuracy_share", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
    ]
)
PAIR_SCHEMA = pa.schema(
    [
        ("method", pa.string()),  # HieraVid, under its label
        ("peer", pa.string()),
        ("comparison", pa.string()),
        ("retention", pa.float64()),
        ("questions", pa.int64()),  # that both were asked
        ("difference", pa.float64()),  # accuracy minus the peer's, 95 % paired interval
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("verdict", pa.string()),  # win, tie or loss: the interval is above, across or below zero
    ]
)


def cell_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Rows of TABLE_SCHEMA."""
    return [{**_names(entry), **_measured(entry, _whole(entries))} for entry in entries]


def kind_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Rows of KIND_SCHEMA; unreachable cells have none."""
    whole = _whole(entries)
    return [
        {
            **_names(entry),
            "kind": kind,
            "questions": int(tally.asked.sum()),
            "accuracy": tally.accuracy,
            **_interval("accuracy_share", entry.scores.share_of(whole, kind)),
        }
        for entry in entries
        if entry.scores
        for kind, tally in entry.scores.kinds.items()
    ]


def pair_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Rows of PAIR_SCHEMA: the first HieraVid against every other pruning method, where both were reached."""
    first = next((e.variant for e in entries if e.variant.method == REFERENCE), None)
    ours = {(e.comparison, e.retention): e for e in entries if e.variant == first}
    rows = []
    for peer in entries:
        mine = ours.get((peer.comparison, peer.retention))
        if peer.variant == first or mine is None or mine.scores is None or peer.scores is None:
            continue
        difference = mine.scores.minus(peer.scores)
        rows.append(
            {
                **_names(mine),
                "peer": peer.variant.label,
                "questions": min(len(mine.scores.prompts), len(peer.scores.prompts)),
                **_interval("difference", difference),
                "verdict": verdict(difference),
            }
        )
    return rows


def verdict(difference: Estimate) -> str:
    """Whether the interval of a difference lies above zero, below it, or holds it."""
    return "win" if difference.low > 0 else "loss" if difference.high < 0 else "tie"


def write_table(rows: Sequence[dict[str, Any]], schema: pa.Schema, path: Path, facts: dict[str, str]) -> None:
    """Write rows as Parquet, whole or not at all; `facts` (commit, command, …) go into the file's metadata."""
    partial = path.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema.with_metadata(facts)), partial)
    partial.replace(path)


def _whole(entries: Sequence[Entry]) -> Scores:
    return next(entry.scores for entry in entries if entry.variant.method == UNPRUNED and entry.scores)


def _names(entry: Entry) -> dict[str, Any]:
    return {"method": entry.variant.label, "comparison": entry.comparison, "retention": entry.retention}


def _measured(entry: Entry, whole: Scores) -> dict[str, Any]:
    if not isinstance(entry.budget, Budget) or entry.scores is None:
        return {"status": "unreachable", "minimum": entry.budget.minimum}
    scores = entry.scores
    return {
        **{name: scores.costs[name] for name in COSTS},
        "questions": len(scores.prompts),
        "accuracy": scores.total.accuracy,
        **_interval("accuracy_share", scores.share_of(whole)),
        "caption_score": scores.caption_score,
        "captions": scores.captions,
        "status": "ok",
        "retention_asked": entry.budget.retention,
    }


def _interval(name: str, estimate: Estimate) -> dict[str, float | None]:
    numbers = {name: estimate.value, "ci_low": estimate.low, "ci_high": estimate.high}
    return {key: None if math.isnan(number) else number for key, number in numbers.items()}
