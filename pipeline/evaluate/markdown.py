"""Tables of a comparison and of ablations as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.evaluate.origin import Origin

Row = dict[str, Any]

_TITLES = {
    "mean": "Equal retention (mean over the decoder's layers)",
    "flops": "Equal prefill FLOPs (columns: the retention at which HieraVid needs them)",
}
LOAD_NOTE = "Times are a question's share on a machine that may have had other work: compare them within a row only."


def comparison_markdown(cells: Sequence[Row], pairs: Sequence[Row], kinds: Sequence[Row], origin: Origin) -> str:
    """The summary, then for each comparison paired differences, costs, and accuracy by kind of question."""
    parts = [comparison_summary(cells, pairs), origin.line()]
    for comparison in _unique(cells, "comparison"):
        paired, asked, mine = ([r for r in rows if r["comparison"] == comparison] for rows in (pairs, kinds, cells))
        parts += [
            f"## Details: {_TITLES[comparison]}",
            f"HieraVid against each peer, points of accuracy on the same questions (95 % paired interval)\n\n"
            f"{pair_table(paired)}",
            f"What it cost. {LOAD_NOTE}\n\n{cost_table(mine)}",
            f"Accuracy by kind of question, %\n\n{kind_table(asked)}",
        ]
    return "\n\n".join(parts) + "\n"


def comparison_summary(cells: Sequence[Row], pairs: Sequence[Row]) -> str:
    """Share of the unpruned accuracy of every method in each comparison; wins, ties and losses."""
    parts = ["Accuracy in % of the unpruned model's on the same questions (95 % paired interval, clips resampled)."]
    for comparison in _unique(cells, "comparison"):
        mine = [row for row in cells if row["comparison"] == comparison]
        parts.append(f"**{_TITLES[comparison]}**\n\n{share_table(mine)}")
    if pairs:
        parts.append(f"HieraVid against each peer, by the paired interval of the difference:\n\n{verdict_list(pairs)}")
    return "\n\n".join(parts)


def share_table(cells: Sequence[Row]) -> str:
    """Share of the unpruned accuracy in %, a row a method and a column a retention, of one comparison."""
    retentions = _retentions(cells)
    lines = []
    for method, rows in _by_method(cells).items():
        if rows.keys() == {1.0}:  # unpruned: accuracy itself
            only = rows[1.0]
            whole = f"100 (accuracy {100 * only['accuracy']:.1f} %)"
            lines.append([method, f"{only['questions']:,}", whole, *[""] * (len(retentions) - 1)])
            continue
        asked = max((row.get("questions") or 0 for row in rows.values()), default=0)
        lines.append([method, f"{asked:,}", *(_share(rows.get(retention)) for retention in retentions)])
    return grid(["method", "questions", *(f"{r:g}" for r in retentions)], lines)


def pair_table(pairs: Sequence[Row]) -> str:
    """Differences with verdicts, a row a peer and a column a retention, of one comparison."""
    retentions = sorted({row["retention"] for row in pairs}, reverse=True)
    lines = []
    for peer in _unique(pairs, "peer"):
        rows = {row["retention"]: row for row in pairs if row["peer"] == peer}
        lines.append([peer, *(_difference(rows.get(retention)) for retention in retentions)])
    return grid(["peer", *(f"{r:g}" for r in retentions)], lines)


def verdict_list(pairs: Sequence[Row]) -> str:
    """Wins, ties and losses, a line each with the peers and retentions, of all comparisons."""
    lines = []
    for verdict, name in (("win", "Wins"), ("tie", "Ties"), ("loss", "Losses")):
        for comparison, title in (("mean", "equal retention"), ("flops", "equal FLOPs")):
            chosen = [row for row in pairs if row["verdict"] == verdict and row["comparison"] == comparison]
            where = {
                peer: ", ".join(f"{row['retention']:g}" for row in chosen if row["peer"] == peer)
                for peer in _unique(chosen, "peer")
            }
            told = "; ".join(f"{peer} at {retentions}" for peer, retentions in where.items())
            if any(row["comparison"] == comparison for row in pairs):
                lines.append(f"- {name}, {title} ({len(chosen)}): {told or 'none'}")
    return "\n".join(lines)


def cost_table(cells: Sequence[Row]) -> str:
    """What each cell kept and cost, and its captions' score."""
    lines = [
        [
            row["method"],
            f"{row['retention']:g}",
            *(_number(row.get(name), 3) for name in ("retention_achieved", "flops_ratio", "kv_ratio")),
            *(_number(row.get(name), 1) for name in ("prune_ms", "prefill_ms")),
            _number(row.get("caption_score"), 3),
        ]
        for row in cells
        if row["status"] == "ok"
    ]
    return grid(["method", "at", "retention", "FLOPs", "KV", "prune ms", "prefill ms", "caption F1"], lines)


def kind_table(kinds: Sequence[Row]) -> str:
    """Accuracy in %, a row a method and retention and a column a kind of question."""
    names = sorted({row["kind"] for row in kinds})
    found = {(row["method"], row["retention"], row["kind"]): row for row in kinds}
    places = list(dict.fromkeys((row["method"], row["retention"]) for row in kinds))
    lines = [
        [method, f"{retention:g}", *(_percent(found.get((method, retention, kind))) for kind in names)]
        for method, retention in places
    ]
    return grid(["method", "at", *names], lines)


def ablation_markdown(rows: Sequence[Row], origin: Origin) -> str:
    """Each group of variants: accuracy and difference to the default at each retention."""
    retentions = _retentions(rows)
    parts = []
    for group in _unique(rows, "group"):
        lines = []
        for variant in _unique([row for row in rows if row["group"] == group], "variant"):
            mine = {row["retention"]: row for row in rows if (row["group"], row["variant"]) == (group, variant)}
            cells = [text for r in retentions for text in _ablated(mine.get(r))]
            lines.append([variant, *cells])
        header = [title for r in retentions for title in (f"accuracy at {r:g}", "against default", "caption F1")]
        parts.append(f"### {group}\n\n{grid(['variant', *header], lines)}")
    note = "Accuracy in %; differences in points on the same questions, with their 95 % paired interval."
    return "\n\n".join([note, *parts, origin.line()]) + "\n"


def grid(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def _by_method(cells: Sequence[Row]) -> dict[str, dict[float, Row]]:
    found: dict[str, dict[float, Row]] = {}
    for row in cells:
        found.setdefault(row["method"], {})[row["retention"]] = row
    return found


def _unique(rows: Sequence[Row], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def _retentions(rows: Sequence[Row]) -> list[float]:
    """The retentions of those that prune, largest first."""
    found = {row["retention"] for row in rows}
    return sorted(found - {1.0} or found, reverse=True)


def _share(row: Row | None) -> str:
    if row is None:
        return ""
    if row["status"] != "ok":
        return f"unreachable (from {row['minimum']:.3f})"
    return f"{100 * row['accuracy_share']:.1f} ({100 * row['ci_low']:.1f} to {100 * row['ci_high']:.1f})"


def _difference(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row['verdict']} {_points(row)}"


def _points(row: Row) -> str:
    return f"{100 * row['difference']:+.1f} ({100 * row['ci_low']:+.1f} to {100 * row['ci_high']:+.1f})"


def _ablated(row: Row | None) -> tuple[str, str, str]:
    if row is None or row["accuracy"] is None:
        return "unreachable", "", ""
    difference = "" if row["difference"] is None else _points(row)
    return f"{100 * row['accuracy']:.1f}", difference, _number(row["caption_score"], 3)


def _percent(row: Row | None) -> str:
    return "" if row is None else f"{100 * row['accuracy']:.0f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
