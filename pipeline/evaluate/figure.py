"""Accuracy over prefill FLOPs, one line a method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from pipeline.evaluate.origin import Origin
from pipeline.evaluate.variants import UNPRUNED

# Okabe and Ito's colours, told apart by most colour-blind readers; markers and dashes say the same again.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#8C6D31")
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
_DASHES = ("-", "--", ":")
_OURS = "#D55E00"
_TICKS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 70, 100)


def draw_comparison(rows: Sequence[dict[str, Any]], first: str, path: Path, origin: Origin) -> None:
    """Write a PNG of the table's rows: those at equal FLOPs where there are any, else those at equal retention.

    The line of `first` stands out. Unreachable cells are missing from their lines.
    """
    comparison = "flops" if any(row["comparison"] == "flops" for row in rows) else "mean"
    shown = [row for row in rows if row["comparison"] == comparison and row["status"] == "ok"]
    figure = Figure(figsize=(8.6, 5.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    methods = list(dict.fromkeys(row["method"] for row in shown if row["method"] != UNPRUNED))
    methods.sort(key=lambda method: -_lowest(shown, method)["accuracy_share"])  # the legend reads as the lines end
    others = [method for method in sorted(methods) if method != first]
    for method in methods:
        points = sorted((row["flops_ratio"], row["accuracy_share"]) for row in shown if row["method"] == method)
        number = others.index(method) if method in others else 0
        style: dict[str, Any] = (
            {"color": _OURS, "linewidth": 3, "marker": "o", "markersize": 7, "zorder": 5}
            if method == first
            else {
                "color": _COLOURS[number % len(_COLOURS)],
                "linewidth": 1.4,
                "linestyle": _DASHES[number // len(_COLOURS) % len(_DASHES)],
                "marker": _MARKERS[number % len(_MARKERS)],
                "markersize": 5.5,
            }
        )
        axes.plot(*zip(*((100 * x, 100 * y) for x, y in points), strict=True), label=method, **style)
    for row in shown:
        if row["method"] == UNPRUNED:
            name = f"unpruned ({100 * row['accuracy']:.1f} %)"
            axes.axhline(100, color="0.35", linewidth=1.2, linestyle=(0, (6, 3)), label=name)
    axes.set_xlabel("prefill FLOPs, % of the unpruned model's")
    axes.set_ylabel("accuracy, % of the unpruned model's on the same questions")
    axes.set_xscale("log")  # retentions fall by factors
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    figure.text(0.01, 0.002, f"{origin.date}, {origin.commit}", fontsize=6, color="0.5")
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial)
    partial.replace(path)


def _lowest(rows: Sequence[dict[str, Any]], method: str) -> dict[str, Any]:
    """The row of a method at its smallest cost."""
    return min((row for row in rows if row["method"] == method), key=lambda row: row["flops_ratio"])
