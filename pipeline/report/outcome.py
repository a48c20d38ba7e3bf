"""How a run ended, and what failed in it."""

from __future__ import annotations

from pipeline.errors import ERROR_CODES, scrub
from pipeline.report import forms
from pipeline.report.found import FoundRun
from pipeline.report.parts import Cell, RunLine, Section, Table
from pipeline.report.rows import Rows

LETTERS = "AB"
_EXAMPLES = 3
_SHOWN_CODES = 30
_SPANS = """
    with timed as (
        select started_at, finished_at,
            max(finished_at) over (
                order by started_at, finished_at rows between unbounded preceding and 1 preceding
            ) as before
        from rows where run = ? and started_at is not null and finished_at >= started_at
    )
    select (sum(greatest(0, finished_at - greatest(started_at, coalesce(before, started_at)))) / 1e6)::double
        as working_s
    from timed
"""


def totals(rows: Rows, run: int) -> dict[str, float | int | str | None]:
    """The numbers that several sections tell of a run; None for what no row has."""
    told = rows.one(
        """
        select count(*) as rows, count(*) filter (status = 'ok') as ok, count(*) filter (status = 'error') as errors,
            count(distinct video_id) filter (status = 'ok') as videos,
            sum(duration_s) filter (status = 'ok')::double as watched_s,
            sum(video_tokens)::double as video_tokens,
            sum(video_tokens * retention_achieved)::double as kept_tokens,
            sum(prompt_tokens)::double as prompt_tokens, sum(output_tokens)::double as output_tokens,
            avg(retention_achieved) filter (status = 'ok') as retention,
            avg(retention_requested) filter (status = 'ok') as asked,
            avg(flops_ratio) as flops_ratio, avg(kv_ratio) as kv_ratio, max(peak_memory_mb) as peak_memory_mb,
            sum(bytes_fetched)::double as bytes, min(started_at) as started_at, max(finished_at) as finished_at,
            bool_or(starts_with(device, 'cuda')) as is_on_gpu,
            string_agg(distinct model, ', ') as model, string_agg(distinct device, ', ') as device,
            count(distinct host) as hosts, string_agg(distinct pruning_method, ', ') as method,
            string_agg(distinct dtype, ', ') as dtype, string_agg(distinct code_version, ', ') as code_version
        from rows where run = ?
        """,
        run,
    )
    told |= rows.one(_SPANS, run)
    working_s = told["working_s"]
    told["videos_per_min"] = told["videos"] / working_s * 60 if told["videos"] and working_s else None
    told["failed_share"] = told["errors"] / told["rows"] if told["rows"] else None
    return told


def run_line(run: FoundRun, number: int, told: dict) -> RunLine:
    """What the head of the page says about a run."""
    verdict, mood = _verdict(run, told)
    summary = run.summary
    facts = [
        ("task", summary.task if summary else (run.plan or {}).get("task")),
        ("model", told["model"]),
        ("pruning", told["method"]),
        ("device", f"{told['device']}, {told['dtype'] or forms.NONE}" if told["device"] else None),
        ("hosts", forms.count(told["hosts"]) if told["hosts"] else None),
        ("first row", f"{forms.moment(told['started_at'])} UTC" if told["started_at"] else None),
        ("last row", f"{forms.moment(told['finished_at'])} UTC" if told["finished_at"] else None),
        ("took", forms.seconds(summary.elapsed_s) if summary else None),
        ("fingerprint", summary.fingerprint if summary else (run.plan or {}).get("fingerprint")),
        ("code", told["code_version"]),
    ]
    return RunLine(
        letter=LETTERS[number],
        name=run.name,
        run_id=run.run_id,
        place=scrub(run.output),
        verdict=verdict,
        mood=mood,
        facts=tuple((label, forms.printable(str(value), 200)) for label, value in facts if value),
        config=scrub(run.config or ""),
        others=run.others,
    )


def _verdict(run: FoundRun, told: dict) -> tuple[str, str]:
    planned, rows = run.planned_rows, told["rows"]
    status = run.summary.exit_status if run.summary else None
    if not rows:
        return "No row has a result yet.", ""
    done = f"{forms.count(told['ok'])} of {forms.count(planned or rows)} rows answered"
    failed = f"{forms.count(told['errors'])} failed" if told["errors"] else "none failed"
    if planned and rows < planned:
        state = {130: "it was interrupted", 2: "something of the job must be changed", 3: "cluster or storage failed"}
        state[1] = "too many rows failed"
        why = state.get(status or -1, "it goes on, or its driver was killed")
        return f"{done}, {failed}; {forms.count(planned - rows)} have no result: {why}.", "bad" if status else ""
    if status == 1:
        allowed = forms.share(run.summary.max_failed_share) if run.summary else forms.NONE
        return f"{done}, {failed}: more than the {allowed} that the job allows.", "bad"
    return f"{done}, {failed}.", "bad" if told["errors"] and not told["ok"] else "good"


def failures(rows: Rows, told: list[dict]) -> Section:
    """How many rows failed with which code, and examples of each."""
    section = {"name": "failures", "title": "Failures"}
    if not any(one["errors"] for one in told):
        return Section(
            **section, sentences=("No row failed.",) if any(one["rows"] for one in told) else ("No row yet.",)
        )
    counts = rows.ask(
        """
        select error_stage, error_code, count(*) filter (run = 0) as a, count(*) filter (run = 1) as b
        from rows where status = 'error' group by all order by count(*) desc, error_stage, error_code
        """
    )
    columns = ["code"]
    columns += ["rows", "share of all"] if len(rows.runs) == 1 else [f"rows in {letter}" for letter in LETTERS]
    columns += ["stage", "what it means"]
    lines = []
    for line in counts[:_SHOWN_CODES]:
        code = line["error_code"] or "unknown"
        cells = [Cell(forms.printable(code, 80), "code"), Cell(forms.count(line["a"]))]
        if len(rows.runs) == 1:
            part = line["a"] / told[0]["rows"]
            cells.append(Cell(forms.share(part), share=part))
        else:
            cells.append(Cell(forms.count(line["b"])))
        cells.append(Cell(forms.printable(line["error_stage"], 40), "text"))
        cells.append(Cell(ERROR_CODES.get(code, ("", "not a code of this version"))[1], "text"))
        lines.append(tuple(cells))
    left_out = len(counts) - len(lines)
    note = f"{left_out} rarer codes are left out." if left_out > 0 else ""
    return Section(
        **section,
        tables=(Table("Failed rows by code", tuple(columns), tuple(lines), note), _examples(rows)),
    )


def _examples(rows: Rows) -> Table:
    examples = rows.ask(
        f"""
        with once as (
            select run, error_code, video_id, uri, error_message, attempts, count(*) over (partition by error_code) as n
            from rows where status = 'error'
            qualify row_number() over (partition by error_code, uri, video_id order by run, item_id) = 1
        )
        select * from once
        qualify row_number() over (partition by error_code order by run, video_id, uri) <= {_EXAMPLES}
        order by n desc, error_code, run, video_id, uri limit {_EXAMPLES * _SHOWN_CODES}
        """  # noqa: S608  # our own constants
    )
    lines = tuple(
        (
            Cell(forms.printable(line["error_code"], 80), "code"),
            Cell(forms.printable(line["video_id"], 80), "foreign", note=forms.tail(scrub(line["uri"] or ""))),
            Cell(scrub(forms.printable(line["error_message"], 300)), "foreign"),
            Cell(forms.count(line["attempts"])),
        )
        for line in examples
    )
    return Table(f"Examples, at most {_EXAMPLES} videos of each code", ("code", "video", "message", "attempts"), lines)
