"""Scores results of the procedural clips against their references: `python -m pipeline.tiny.scores out/demo`.

Reads the Parquet of a caption and a QA job (folders `caption` and `qa`), prints exact match by kind of question, F1
over the facts of captions, and some answers beside the truth.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import duckdb
from rich.console import Console
from rich.table import Table

from pipeline.prompts import OPTION_REQUEST
from pipeline.tiny.language import caption_f1


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All result rows of an output folder, in a stable order."""
    pattern = str(folder / "results" / "**" / "*.parquet")
    table = duckdb.execute("select * from read_parquet(?) order by video_id, prompt, item_id", [pattern])
    names = [column[0] for column in table.description or []]
    return [dict(zip(names, row, strict=True)) for row in table.fetchall()]


def score_answers(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Share of answers equal to the reference, by kind of question and over `all`. An error row is a wrong answer."""
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        by_kind[row["kind"]].append(row["answer"] == row["reference"])
    scores = {kind: fmean(hits) for kind, hits in sorted(by_kind.items())}
    return {**scores, "all": fmean(hit for hits in by_kind.values() for hit in hits)}


def score_captions(rows: list[dict[str, Any]]) -> float:
    """Mean F1 over the facts of the captions. An error row scores 0."""
    return fmean(caption_f1(row["answer"] or "", row["reference"]) for row in rows)


def score_rows(questions: list[dict[str, Any]], captions: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores of a QA job and a caption job from their result rows."""
    rows = [*questions, *captions]
    return {
        "clips": len(captions),
        "questions": len(questions),
        "errors": sum(row["status"] != "ok" for row in rows),
        "accuracy": score_answers(questions),
        "caption_f1": score_captions(captions),
        "retention": fmean(row["retention_achieved"] for row in rows if row["status"] == "ok"),
        "flops_ratio": fmean(row["flops_ratio"] for row in rows if row["status"] == "ok"),
        "pruning_method": rows[0]["pruning_method"],
        "model_hash": rows[0]["model_hash"],
    }


def print_scores(
    questions: list[dict[str, Any]],
    captions: list[dict[str, Any]],
    scores: dict[str, Any],
    examples: int,
    console: Console,
) -> None:
    """Some answers beside the truth, then the scores."""
    table = Table(title="Answers beside the truth", show_lines=False)
    for column in ("video", "question", "answer", "reference", ""):
        table.add_column(column, overflow="fold")
    shown = [*captions[: max(1, examples // 4)], *questions[:: len(questions) // examples + 1]]
    for row in shown:
        right = row["answer"] == row["reference"]
        asked = " ".join(line for line in row["prompt"].splitlines() if line != OPTION_REQUEST)
        table.add_row(row["video_id"], asked, row["answer"], row["reference"], "" if right else "differs")
    console.print(table)
    kinds = ", ".join(f"{k} {v:.2f}" for k, v in scores["accuracy"].items() if k != "all")
    console.print(f"Questions answered exactly: {scores['accuracy']['all']:.1%} of {scores['questions']} ({kinds})")
    console.print(f"Caption F1 over facts: {scores['caption_f1']:.3f} on {scores['clips']} clips")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--examples", type=int, default=12)
    parser.add_argument("--json", type=Path, help="also write the scores here")
    args = parser.parse_args()
    questions, captions = read_rows(args.folder / "qa"), read_rows(args.folder / "caption")
    scores = score_rows(questions, captions)
    print_scores(questions, captions, scores, args.examples, Console())
    if args.json:
        args.json.write_text(json.dumps(scores, indent=2) + "\n")


if __name__ == "__main__":
    main()
