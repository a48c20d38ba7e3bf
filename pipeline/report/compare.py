"""Two runs beside each other: their numbers, and the answers that they do not share."""

from __future__ import annotations

from pipeline.report import forms
from pipeline.report.parts import Cell, Section, Table
from pipeline.report.rows import Rows

_SHOWN = 12
_PAIRS = """
    with numbered as (
        select *, row_number() over (partition by run, uri, video_id, prompt order by item_id) as n
        from rows
    )
    select {chosen}
    from numbered a join numbered b
        on a.run = 0 and b.run = 1 and a.n = b.n and a.uri is not distinct from b.uri
        and a.video_id is not distinct from b.video_id and a.prompt is not distinct from b.prompt
"""
_COUNTED = """
    count(*) as pairs, count(*) filter (a.status = 'ok' and b.status = 'ok') as answered,
    count(*) filter (a.status = 'ok' and b.status = 'ok' and a.answer_hash = b.answer_hash) as same,
    count(*) filter (a.status = 'ok' and b.status = 'error') as lost,
    count(*) filter (a.status = 'error' and b.status = 'ok') as won
"""
_SHOWN_COLUMNS = "a.video_id, a.uri, a.prompt, a.answer as first, b.answer as second"
_DIFFERENT = """
    where a.status = 'ok' and b.status = 'ok' and a.answer_hash is distinct from b.answer_hash
    order by a.video_id, a.prompt, a.item_id limit ?
"""


def side_by_side(rows: Rows, told: list[dict]) -> Section:
    """The numbers of both runs with what changed, and answers to the same question that differ."""
    numbers = (
        ("rows answered", "ok", forms.count),
        ("rows failed", "errors", forms.count),
        ("videos a minute", "videos_per_min", forms.rate),
        ("time with a row in work", "working_s", forms.seconds),
        ("video tokens seen", "video_tokens", forms.count),
        ("video tokens kept", "kept_tokens", forms.count),
        ("answer tokens", "output_tokens", forms.count),
        ("retention achieved", "retention", lambda value: forms.number(value, 3)),
        ("prefill FLOPs, of unpruned", "flops_ratio", forms.share),
        ("KV cache, of unpruned", "kv_ratio", forms.share),
    )
    first, second = told
    lines = tuple(
        (
            Cell(label, "text"),
            Cell(form(first[name])),
            Cell(form(second[name])),
            Cell(forms.change(first[name], second[name])),
        )
        for label, name, form in numbers
    )
    pairs = rows.one(_PAIRS.format(chosen=_COUNTED))
    tables = [Table("Both runs", ("", "run A", "run B", "B against A"), lines)]
    sentences = [_same_rows(pairs)]
    different = rows.ask(_PAIRS.format(chosen=_SHOWN_COLUMNS) + _DIFFERENT, _SHOWN)
    if different:
        texts = tuple(
            tuple(
                Cell(forms.printable(row[name], 300), "foreign") for name in ("video_id", "prompt", "first", "second")
            )
            for row in different
        )
        count = pairs["answered"] - pairs["same"]
        caption = f"Answers that differ, {len(texts)} of {forms.count(count)}"
        tables.append(Table(caption, ("video", "prompt", "answer of A", "answer of B"), texts))
    return Section("compare", "Side by side", sentences=tuple(sentences), tables=tuple(tables))


def _same_rows(pairs: dict) -> str:
    if not pairs["pairs"]:
        return "The runs have no row in common: no video was asked the same in both."
    told = f"{forms.count(pairs['pairs'])} rows ask the same of the same video"
    if pairs["answered"]:
        part = forms.share(pairs["same"] / pairs["answered"])
        told += f"; {part} of the {forms.count(pairs['answered'])} answered in both have the same answer"
    if pairs["lost"] or pairs["won"]:
        told += f"; {forms.count(pairs['lost'])} failed only in B, {forms.count(pairs['won'])} only in A"
    return told + "."
