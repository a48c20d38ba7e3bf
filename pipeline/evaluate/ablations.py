"""What each part and each free choice of HieraVid is worth: variants against the default on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pyarrow as pa

from pipeline.engine import VideoLLM
from pipeline.errors import UserError
from pipeline.evaluate.clips import ClipRange
from pipeline.evaluate.compare import cell_of, check_clips, measure_workload, resolve
from pipeline.evaluate.scores import read_scores
from pipeline.evaluate.variants import Variant, pruner_of
from pipeline.evaluate.workers import Report, Runner, Setting
from pipeline.evaluate.workload import Budget, at_retention
from pruning.config import LEVELS

METHOD = "hieravid"
DEFAULT = Variant("default", METHOD)
"""HieraVid as the model runs it: with the model's calibration where it has one."""

_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "preset": [{"preset": "author"}, {"preset": "default"}],
    "levels": [{"levels": chosen} for size in (1, 2, 3) for chosen in combinations(LEVELS, size)],
    "relevance": [
        {"relevance_sign": sign, "relevance_transform": transform}
        for sign in ("negative", "positive")
        for transform in ("minmax", "rank", "exp")
    ],
    "schedule": [{"shape": "author"}, *({"shape": "geometric", "gamma": g} for g in (0.3, 0.45, 0.6, 0.75, 0.9, 1.0))],
    "beta": [{"segments": None, "beta": beta} for beta in (0.0, 0.2, 0.4, 0.6, 0.8)],
    "segments": [{"segments": count} for count in (1, 2, 4, 8)],
    "tau": [{"tau": tau} for tau in (0.4, 0.6, 0.8, 0.9, 0.95, 0.98)],
    "tau and beta": [
        {"segments": None, "tau": tau, "beta": beta} for tau in (0.8, 0.9, 0.95) for beta in (0.2, 0.4, 0.6)
    ],
    "selection": [{"selection": rule} for rule in ("dpp", "relevance", "uniform")],
    "merge share": [{"merge_share": share} for share in (0.0, 0.25, 0.5, 0.75, 1.0)],
    "budget": [{"budget_coupling": coupling} for coupling in ("exact", "author")],
    "merging": [{"merge_across_segments": across} for across in (False, True)],
}

ABLATION_SCHEMA = pa.schema(
    [
        ("group", pa.string()),
        ("variant", pa.string()),
        ("retention", pa.float64()),
        ("retention_achieved", pa.float64()),
        ("flops_ratio", pa.float64()),
        ("questions", pa.int64()),
        ("accuracy", pa.float64()),  # null where the retention is out of the variant's reach
        ("difference", pa.float64()),  # to the default, 95 % paired interval; null for the default itself
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("caption_score", pa.float64()),
        ("captions", pa.int64()),
        ("prune_ms", pa.float64()),
        ("prefill_ms", pa.float64()),
    ]
)


def group_names() -> tuple[str, ...]:
    """The groups of variants."""
    return tuple(_OPTIONS)


def ablation_variants(groups: Sequence[str]) -> list[tuple[str, Variant]]:
    """(group, variant) of the named groups; UserError for an unknown one."""
    for group in groups:
        if group not in _OPTIONS:
            raise UserError(f"unknown group of ablations {group!r}, known: {', '.join(_OPTIONS)}")
    return [
        (group, Variant(_label(options), METHOD, tuple(options.items())))
        for group in groups
        for options in _OPTIONS[group]
    ]


def ablate(
    setting: Setting,
    llm: VideoLLM,
    groups: Sequence[str],
    retentions: Sequence[float],
    clips: ClipRange,
    captions: int,
    workers: int,
    report: Report,
) -> list[dict[str, Any]]:
    """Run what is missing of the ablations, and return rows of ABLATION_SCHEMA: the default first."""
    variants = [("default", DEFAULT), *ablation_variants(groups)]
    check_clips(clips, [])
    workload = measure_workload(llm, clips)
    cells = []
    for group, variant in variants:
        config = resolve(variant, llm)
        for retention in retentions:
            budget = at_retention(pruner_of(config), workload, retention)
            cell = cell_of(variant, config, budget, clips, captions) if isinstance(budget, Budget) else None
            cells.append((group, variant, retention, cell))
    with Runner(setting, llm, workers, report) as runner:
        runner.encode(clips)
        files = runner.run(cell for *_, cell in cells if cell)
    rows, defaults = [], {}
    for group, variant, retention, cell in cells:
        row = {"group": group, "variant": variant.label, "retention": retention}
        rows.append({name: row.get(name) for name in ABLATION_SCHEMA.names})
        if cell is None:
            continue
        scores = read_scores(files[cell])
        rows[-1] |= {
            **{name: scores.costs[name] for name in ("retention_achieved", "flops_ratio", "prune_ms", "prefill_ms")},
            "questions": len(scores.prompts),
            "accuracy": scores.total.accuracy,
            "caption_score": scores.caption_score,
            "captions": scores.captions,
        }
        if variant == DEFAULT:
            defaults[retention] = scores
        elif retention in defaults:
            difference = scores.minus(defaults[retention])
            rows[-1] |= {"difference": difference.value, "ci_low": difference.low, "ci_high": difference.high}
    return rows


def _label(options: dict[str, Any]) -> str:
    """As a method's options stand on the command line, short."""
    told = {name: value for name, value in options.items() if not (name == "segments" and value is None)}
    return ", ".join(f"{name} {'+'.join(v) if isinstance(v, tuple) else v}" for name, v in told.items())
