"""The files that a comparison and ablations leave in their folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluate.ablations import ABLATION_SCHEMA
from pipeline.evaluate.compare import REFERENCE, Entry
from pipeline.evaluate.figure import draw_comparison
from pipeline.evaluate.markdown import ablation_markdown, comparison_markdown, comparison_summary
from pipeline.evaluate.origin import Origin
from pipeline.evaluate.table import (
    KIND_SCHEMA,
    PAIR_SCHEMA,
    TABLE_SCHEMA,
    cell_rows,
    kind_rows,
    pair_rows,
    write_table,
)


def write_comparison(entries: Sequence[Entry], folder: Path, origin: Origin) -> str:
    """Write table.parquet, kinds.parquet, pairs.parquet, table.md and figure.png; returns a summary as Markdown."""
    cells, kinds, pairs = cell_rows(entries), kind_rows(entries), pair_rows(entries)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(cells, TABLE_SCHEMA, folder / "table.parquet", origin.facts())
    write_table(kinds, KIND_SCHEMA, folder / "kinds.parquet", origin.facts())
    write_table(pairs, PAIR_SCHEMA, folder / "pairs.parquet", origin.facts())
    (folder / "table.md").write_text(comparison_markdown(cells, pairs, kinds, origin))
    ours = next((entry.variant.label for entry in entries if entry.variant.method == REFERENCE), "")
    draw_comparison(cells, ours, folder / "figure.png", origin)
    return comparison_summary(cells, pairs)


def write_ablations(rows: Sequence[dict[str, Any]], folder: Path, origin: Origin) -> str:
    """Write ablations.parquet and ablations.md; returns the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(rows, ABLATION_SCHEMA, folder / "ablations.parquet", origin.facts())
    text = ablation_markdown(rows, origin)
    (folder / "ablations.md").write_text(text)
    return text
