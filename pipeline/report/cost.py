"""What a run cost: the hours in which its workers were busy, and the price of a GPU's."""

from __future__ import annotations

from pipeline.report import forms
from pipeline.report.parts import Cell, Section, Table
from pipeline.report.rows import Rows
from pipeline.report.timing import columns

_CPU = "fetch_ms", "decode_ms"
_MODEL = "vision_ms", "prune_ms", "prefill_ms", "generate_ms"


def cost(rows: Rows, told: list[dict], usd_per_gpu_hour: float | None) -> Section:
    """Busy hours of readers and models; with a price also dollars, where the models ran on GPUs."""
    section = {"name": "cost", "title": "Cost"}
    lists = [_hours(rows, run, one, usd_per_gpu_hour) for run, one in enumerate(told)]
    if not any(one["model busy"] != forms.NONE for one in lists):
        return Section(**section, sentences=("No row says how long a stage took, so there is nothing to price.",))
    labels = list(dict.fromkeys(label for one in lists for label in one))
    lines = tuple((Cell(label, "text"), *(Cell(one.get(label, forms.NONE)) for one in lists)) for label in labels)
    sentences = ["Busy: the sum over rows of the stages' times. Held: as long as the run took, for each model worker."]
    if usd_per_gpu_hour is None:
        sentences.append("With --usd-per-gpu-hour the report also tells the price.")
    elif not any(one["is_on_gpu"] for one in told):
        sentences.append("No row says that it ran on a GPU, so there is no price.")
    else:
        sentences.append(f"A GPU hour at {forms.dollars(usd_per_gpu_hour)}.")
    return Section(
        **section, sentences=tuple(sentences), tables=(Table("Hours", ("", *columns(rows, "whole run")), lines),)
    )


def _hours(rows: Rows, run: int, told: dict, price: float | None) -> dict[str, str]:
    asked = ", ".join(f"sum({name})::double / 1e3 as {name}" for name in (*_CPU, *_MODEL))
    sums = rows.one(f"select {asked} from rows where run = ?", run)  # noqa: S608  # names of columns
    readers, models = (_together([sums[name] for name in names]) for names in (_CPU, _MODEL))
    videos = told["videos"]
    lines = {
        "fetching and decoding busy": forms.hours(readers),
        "model busy": forms.hours(models),
        "model busy per 1,000 videos": forms.hours(models / videos * 1e3 if models is not None and videos else None),
    }
    found = rows.runs[run]
    workers = found.setting("cluster", "answerers")
    held = found.summary.elapsed_s * workers if found.summary and isinstance(workers, int) else None
    if held is not None:
        lines[f"model held, {workers} worker{'s' if workers != 1 else ''}"] = forms.hours(held)
    if price is not None and told["is_on_gpu"]:
        each = found.setting("cluster", "gpus_per_answerer")
        gpus = float(each) if isinstance(each, int | float) else 1.0
        for label, spent in (("GPU busy", models), ("GPU held", held)):
            if spent is not None:
                lines[f"{label}, price"] = forms.dollars(spent / 3600 * gpus * price)
        if held is not None and videos:
            lines["GPU held, price of 1,000 videos"] = forms.dollars(held / 3600 * gpus * price / videos * 1e3)
    return lines


def _together(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
