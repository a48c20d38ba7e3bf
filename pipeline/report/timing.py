"""When rows were finished, where their time went, and how long each took."""

from __future__ import annotations

import math

from pipeline.report import charts, forms
from pipeline.report.outcome import LETTERS
from pipeline.report.parts import Cell, Chart, Section, Table
from pipeline.report.rows import Rows
from pipeline.summary import STAGES

_BUCKETS, _BINS = 48, 24  # the most steps in time, and bars of a histogram
_WIDTHS_S = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)
_QUANTILES = ("p50", "p90", "p99", "longest")
_LATENCIES = ("fetch_ms", "decode_ms", "wait_ms", *STAGES[2:], "total_ms")
_NAMES = {"fetch_ms": "fetch", "decode_ms": "decode", "wait_ms": "wait for the model", "vision_ms": "vision encoder"}
_NAMES |= {"prune_ms": "prune", "prefill_ms": "prefill", "generate_ms": "generate", "total_ms": "whole row"}


def throughput(rows: Rows, told: list[dict]) -> Section:
    """Rows a minute over the time of the run."""
    section = {"name": "throughput", "title": "Throughput"}
    spans = [(one["started_at"], one["finished_at"]) for one in told]
    known = [(begin, end) for begin, end in spans if begin is not None and end is not None]
    if not known:
        return Section(**section, sentences=("No row says when it was in work.",))
    longest_s = max((end - begin) / 1e6 for begin, end in known)
    width_s = next((w for w in _WIDTHS_S if longest_s / w <= _BUCKETS), 86400 * math.ceil(longest_s / 86400 / _BUCKETS))
    lines, failed = [], []
    for run, (begin, end) in enumerate(spans):
        if begin is None or end is None:
            lines.append([])
            continue
        found = {
            row["bucket"]: row
            for row in rows.ask(
                """
                select floor((finished_at - ?) / (? * 1e6))::bigint as bucket, count(*) as n,
                    count(*) filter (status = 'error') as errors
                from rows where run = ? and finished_at is not null group by all
                """,
                begin,
                width_s,
                run,
            )
        }
        buckets = range(math.floor((end - begin) / 1e6 / width_s) + 1)
        a_minute = 60 / width_s
        lines.append([(b * width_s, found[b]["n"] * a_minute if b in found else 0.0) for b in buckets])
        failed.append([(b * width_s, found[b]["errors"] * a_minute if b in found else 0.0) for b in buckets])
    step = forms.axis_seconds(width_s)
    described = "; ".join(
        _of(rows, run, f"at most {forms.rate(max(height for _, height in line))} rows a minute")
        for run, line in enumerate(lines)
        if line
    )
    has_failed = len(rows.runs) == 1 and told[0]["errors"] > 0
    chart = Chart(
        f"Rows finished a minute, in steps of {step}",
        charts.throughput(lines, failed if has_failed else [], width_s),
        f"{described}{', failed ones in red' if has_failed else ''}. Time runs from the first row's start.",
    )
    rates = tuple(
        (
            Cell(label, "text"),
            *(Cell(value(one)) for one in told),
        )
        for label, value in (
            ("videos a minute", lambda one: forms.rate(one["videos_per_min"])),
            ("hours of video answered", lambda one: forms.hours(one["watched_s"])),
            ("time with a row in work", lambda one: forms.seconds(one["working_s"])),
            ("fetched", lambda one: forms.size(one["bytes"])),
        )
    )
    return Section(**section, charts=(chart,), tables=(Table("In numbers", ("", *columns(rows, "")), rates),))


def time_spent(rows: Rows) -> Section:
    """Busy time of each stage, added up over the rows."""
    section = {"name": "time", "title": "Where the time went"}
    sums = [
        rows.one(
            f"select {', '.join(f'sum({name})::double as {name}' for name in (*STAGES, 'wait_ms', 'decode_cpu_ms'))}"  # noqa: S608  # names of columns
            " from rows where run = ?",
            run,
        )
        for run in range(len(rows.runs))
    ]
    busy = [sum(one[stage] or 0.0 for stage in STAGES) for one in sums]
    if not any(busy):
        return Section(**section, sentences=("No row says how long a stage took.",))
    lines = []
    for stage in STAGES:
        cells = [Cell(_NAMES[stage], "text")]
        for run, one in enumerate(sums):
            part = (one[stage] or 0.0) / busy[run] if busy[run] else None
            cells += [Cell(forms.milliseconds(one[stage])), Cell(forms.share(part), share=part, run=run)]
        lines.append(tuple(cells))
    whole = [Cell("busy, all stages", "text")]
    for run in range(len(sums)):
        whole += [Cell(forms.milliseconds(busy[run])), Cell("100 %" if busy[run] else forms.NONE)]
    names = [name for run in range(len(sums)) for name in (f"busy{_suffix(rows, run)}", f"share{_suffix(rows, run)}")]
    sentences = []
    for run, one in enumerate(sums):
        if one["wait_ms"] is not None:
            told = f"Rows waited {forms.milliseconds(one['wait_ms'])} in all between decoder and model"
            if one["decode_cpu_ms"] is not None:
                told += f"; decoding took {forms.milliseconds(one['decode_cpu_ms'])} of CPU time"
            sentences.append(_of(rows, run, told) + ".")
    note = "Each row bears its share of what its video or batch took; stages of different rows overlap in time."
    table = Table("Busy time by stage", ("stage", *names), (*lines, tuple(whole)), note)
    return Section(**section, sentences=tuple(sentences), tables=(table,))


def latency(rows: Rows) -> Section:
    """How long rows took: a histogram of whole rows, and quantiles of each stage."""
    section = {"name": "latency", "title": "Latency"}
    asked = ", ".join(
        f"quantile_cont({name}, [0.5, 0.9, 0.99, 1.0])::double[] as {name}"
        for name in _LATENCIES  # names of columns
    )
    found = [rows.one(f"select {asked} from rows where run = ?", run) for run in range(len(rows.runs))]  # noqa: S608
    if not any(value for one in found for value in one.values()):
        return Section(**section, sentences=("No row says how long it took.",))
    tables = []
    for run, one in enumerate(found):
        lines = tuple(
            (Cell(_NAMES[name], "text"), *(Cell(forms.milliseconds(value)) for value in one[name] or (None,) * 4))
            for name in _LATENCIES
        )
        tables.append(Table(f"Latency of a row by stage{_suffix(rows, run)}", ("stage", *_QUANTILES), lines))
    chart = _histogram(rows, found)
    note = "Half of the rows took no longer than p50, 90 % than p90, 99 % than p99. A whole row counts its waiting."
    return Section(**section, sentences=(note,), charts=(chart,) if chart else (), tables=tuple(tables))


def _histogram(rows: Rows, found: list[dict]) -> Chart | None:
    ends = rows.one("select min(total_ms)::double as least, max(total_ms)::double as most from rows where total_ms > 0")
    if ends["least"] is None:
        return None
    step = max(1.02, (ends["most"] / ends["least"] * 1.0001) ** (1 / _BINS))
    points = []
    for run in range(len(rows.runs)):
        bins = rows.ask(
            """
            select floor(ln(total_ms / ?) / ln(?))::bigint as bin, count(*) as n
            from rows where run = ? and total_ms > 0 group by all
            """,
            ends["least"],
            step,
            run,
        )
        counted = {row["bin"]: row["n"] for row in bins}
        whole = sum(counted.values())
        last = max(counted, default=-1)
        points.append([(ends["least"] * step**b, counted.get(b, 0) / whole) for b in range(last + 1)])
    described = "; ".join(
        _of(rows, run, f"half of the rows took up to {forms.milliseconds(one['total_ms'][0])}")
        for run, one in enumerate(found)
        if one["total_ms"]
    )
    return Chart("Whole rows by how long they took", charts.histogram(points, step), f"{described}. Share of rows.")


def columns(rows: Rows, single: str) -> tuple[str, ...]:
    """The names of the columns of numbers: `single` for one run, the letters of two."""
    return (single,) if len(rows.runs) == 1 else tuple(f"run {letter}" for letter in LETTERS[: len(rows.runs)])


def _suffix(rows: Rows, run: int) -> str:
    return "" if len(rows.runs) == 1 else f", {LETTERS[run]}"


def _of(rows: Rows, run: int, told: str) -> str:
    return told[0].upper() + told[1:] if len(rows.runs) == 1 else f"{LETTERS[run]}: {told}"
