"""Where the tokens went, and how many were left from each stage of pruning on."""

from __future__ import annotations

from pipeline.report import charts, forms
from pipeline.report.outcome import LETTERS
from pipeline.report.parts import Cell, Chart, Section, Table
from pipeline.report.rows import Rows
from pipeline.report.timing import columns

_STAGES = """
    with usual as (
        select stage_layers from rows
        where run = ? and video_tokens > 0 and len(stage_layers) > 0 and len(stage_layers) = len(stage_tokens)
        group by stage_layers order by count(*) desc, stage_layers limit 1
    ), counted as (
        select unnest(stage_layers) as layer, unnest(stage_tokens) / video_tokens as share, stage_tokens, video_tokens,
            unnest(stage_tokens) as tokens
        from rows join usual using (stage_layers)
        where run = ? and video_tokens > 0 and len(stage_layers) = len(stage_tokens)
    )
    select layer, count(*) as n, avg(share) as mean, quantile_cont(share, [0.1, 0.5, 0.9])::double[] as quantiles,
        avg(tokens) as tokens
    from counted group by layer order by layer
"""


def tokens(rows: Rows, told: list[dict]) -> Section:
    """Sums of tokens, and what pruning saved."""
    section = {"name": "tokens", "title": "Where the tokens went"}
    if not any(one["video_tokens"] for one in told):
        return Section(**section, sentences=("No row says how many tokens it had.",))
    lines = [
        ("video tokens seen", lambda one: forms.count(one["video_tokens"])),
        ("video tokens kept, mean over the layers", lambda one: forms.count(one["kept_tokens"])),
        ("prompt tokens", lambda one: forms.count(one["prompt_tokens"])),
        ("answer tokens", lambda one: forms.count(one["output_tokens"])),
        ("retention asked, mean", lambda one: forms.number(one["asked"], 3)),
        ("retention achieved, mean", lambda one: forms.number(one["retention"], 3)),
        ("prefill FLOPs, of unpruned", lambda one: forms.share(one["flops_ratio"])),
        ("KV cache, of unpruned", lambda one: forms.share(one["kv_ratio"])),
        ("most memory in use", lambda one: _memory(one["peak_memory_mb"])),
    ]
    table = Table(
        "Tokens and what pruning saved",
        ("", *columns(rows, "all rows")),
        tuple((Cell(label, "text"), *(Cell(value(one)) for one in told)) for label, value in lines),
    )
    return Section(**section, tables=(table,))


def _memory(mib: float | None) -> str:
    return forms.size(None if mib is None else mib * 2**20)


def retention(rows: Rows) -> Section:
    """The share of video tokens that is left over the layers."""
    section = {"name": "retention", "title": "Retention by stage"}
    found = [rows.ask(_STAGES, run, run) for run in range(len(rows.runs))]
    if not any(found):
        return Section(**section, sentences=("No row tells its stages.",))
    tables, points, ends, described = [], [], [], []
    for run, stages in enumerate(found):
        letter = "" if len(found) == 1 else f", {LETTERS[run]}"
        if not stages:
            ends.append(0)
            points.append([])
            continue
        lines = tuple(
            (
                Cell(f"from layer {stage['layer']}", "text"),
                Cell(forms.number(stage["tokens"], 1)),
                Cell(forms.share(stage["mean"]), share=min(1.0, stage["mean"]), run=run),
            )
            for stage in stages
        )
        others = rows.one("select count(*) as n from rows where run = ? and len(stage_layers) > 0", run)["n"]
        left_out = others - stages[0]["n"]
        tables.append(
            Table(
                f"Video tokens left, mean row{letter}",
                ("stage", "tokens", "share"),
                lines,
                f"{forms.count(left_out)} rows with stages at other layers are left out." if left_out > 0 else "",
            )
        )
        # the stages end with the decoder, which no row tells of: the last one is drawn as long as the one before
        starts = [stage["layer"] for stage in stages]
        ends.append(starts[-1] + (starts[-1] - starts[-2] if len(starts) > 1 else 1))
        points.append([(stage["layer"], stage["quantiles"][1], *stage["quantiles"][::2]) for stage in stages])
        least = forms.share(stages[-1]["mean"])
        described.append(f"{letter.removeprefix(', ')}{': ' if letter else ''}{least} are left in the last stage")
    chart = Chart(
        "Share of video tokens left, median row",
        charts.layers(points, ends),
        f"{'; '.join(described)}. The band holds four rows of five.",
    )
    return Section(**section, charts=(chart,), tables=tuple(tables))
