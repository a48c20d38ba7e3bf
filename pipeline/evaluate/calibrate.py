"""Choose HieraVid's options for one model from its own outputs, without labels.

The unpruned model answers every prompt once. Options are good if the pruned model gives those answers
a high probability; they are chosen one coordinate after the other (`descent`) from the field
defaults. The file that comes out says how every candidate scored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import DEFAULT_CAPTION_PROMPT
from pipeline.engine import ModelError, VideoLLM
from pipeline.engine.info import DeviceName, DtypeName
from pipeline.errors import UserError
from pipeline.evaluate.descent import CERTAINTY, COORDINATES, Coordinate, Options, Step, Trial, compare, descend
from pipeline.evaluate.reproduction import Measure, reproduction
from pipeline.evaluate.samples import BuiltinClips, manifest_videos
from pipeline.storage import check_writable, parent, write_atomic
from pipeline.tiny.world import SEED_RANGES
from pruning import PruningConfig
from pruning.calibration import Calibration, apply_calibration

RETENTIONS = (0.3, 0.1)
_DIGITS = 5  # of a score in the file


def calibrate(
    model: str,
    out: str,
    *,
    manifest: str | None = None,
    prompt: str = DEFAULT_CAPTION_PROMPT,
    split: str = "validation",
    first: int = 300,
    clips: int = 150,
    retentions: Sequence[float] = RETENTIONS,
    cache: str = "out/clips",
    workers: int = 1,
    device: DeviceName = "auto",
    dtype: DtypeName = "auto",
    report: Callable[[str], None] = print,
    coordinates: Sequence[Coordinate] = COORDINATES,
) -> Calibration:
    """Calibrate `model` (a local folder or builtin:tiny) and write the file `out` (local or s3://).

    Samples are the first `clips` videos of `manifest` (a manifest, folder or glob as a job takes it; the
    rows' own prompts, `prompt` where they have none), or without one the clips of the built-in
    world's `split` from index `first` on, rendered into `cache` where they are missing. `workers`
    processes of one thread each share the samples; 1 works in this process. `report` gets a line for each
    candidate. Deterministic but for the date in the file. Raises UserError for what the user must
    change, ClusterError where storage cannot be reached.
    """
    _check(retentions, clips, workers)
    check_writable(parent(out))
    try:
        llm = VideoLLM.load(model, device=device, dtype=dtype)
    except ModelError as error:
        raise UserError(f"model: {error}") from error
    if manifest is None:
        if not 0 <= first <= len(SEED_RANGES[split]) - clips:
            raise UserError(f"first = {first}: the {split} split has {len(SEED_RANGES[split])} clips")
        source = BuiltinClips(split, first, clips, Path(cache))
    else:
        source = manifest_videos(manifest, clips, prompt)
    report(f"{llm.info.name}: unpruned answers on {source.name}")
    with reproduction(model, device, dtype, source, workers, llm) as measure:
        chosen, evidence = _choose(measure, tuple(retentions), report, coordinates)
    calibration = Calibration(
        format=1,
        model=llm.info.name,
        model_hash=llm.info.model_hash,
        method="hieravid",
        options=chosen,
        evidence={"created": f"{datetime.now(UTC):%Y-%m-%d}", "samples": source.name, **evidence},
    )
    write_atomic(out, (calibration.model_dump_json(indent=1) + "\n").encode())
    report(f"written to {out}: {_shown(chosen)}")
    return calibration


def _check(retentions: Sequence[float], clips: int, workers: int) -> None:
    if not retentions or not all(0 < r < 1 for r in retentions):
        raise UserError(f"retentions = {', '.join(map(str, retentions))}: numbers above 0 and below 1 are needed")
    if clips < 2:
        raise UserError(f"clips = {clips}: at least 2 are needed to tell a gain from noise")
    if not 1 <= workers <= clips:
        raise UserError(f"workers = {workers}: a whole number from 1 to the number of clips is needed")


def _choose(
    measure: Measure, retentions: tuple[float, ...], report: Callable[[str], None], coordinates: Sequence[Coordinate]
) -> tuple[Options, dict[str, Any]]:
    """The chosen options and the evidence for them."""
    defaults = PruningConfig(preset="default")
    start = {name: getattr(defaults, name) for c in coordinates for candidate in c.candidates for name in candidate}

    def score(options: Options) -> np.ndarray:
        return measure("likelihood", _config(options), retentions)

    before = score(start)
    report(f"{'start':22}  {_numbers(before.mean(1))}  {_shown(start)}")
    chosen, steps = descend(start, score, coordinates, report=partial(_tell, report))
    author = measure("likelihood", _author(), retentions)
    after = score(chosen)
    evidence = {
        "videos": before.shape[1],
        "retentions": list(retentions),
        "score": "mean natural log-probability that the pruned model gives to each token of the unpruned model's "
        "greedy answers, one number for each retention; gain and error: mean paired difference over videos and "
        f"retentions, and its standard error; kept from {CERTAINTY:g} errors on",
        "start": {"options": start, "scores": _rounded(before.mean(1))},
        "author": {"scores": _rounded(author.mean(1))},
        "chosen": {"scores": _rounded(after.mean(1))},
        "gain_over_start": _gain(compare("", {}, before, after)),
        "gain_over_author": _gain(compare("", {}, author, after)),
        "agreement": {
            name: _rounded(measure("agreement", config, retentions).mean(1))
            for name, config in (("start", _config(start)), ("author", _author()), ("chosen", _config(chosen)))
        },
        "steps": [_step(step) for step in steps],
    }
    report(f"{'chosen':22}  {_numbers(after.mean(1))}  agreement {evidence['agreement']}")
    return chosen, evidence


def _config(options: Options) -> PruningConfig:
    return PruningConfig(preset="default", calibration=None, **options)


def _author() -> PruningConfig:
    return apply_calibration(PruningConfig(preset="author"), None)


def _tell(report: Callable[[str], None], trial: Trial) -> None:
    mark = "better" if trial.is_better else ""
    gain = f"{trial.gain:+.4f} ± {trial.error:.4f}"
    report(f"{trial.coordinate:22}  {_numbers(trial.scores)}  {gain} {mark:6}  {_shown(trial.options)}")


def _step(step: Step) -> dict[str, Any]:
    return {
        "coordinate": step.coordinate,
        "kept": step.kept and step.kept.options,
        "trials": [{"options": t.options, "scores": _rounded(t.scores), **_gain(t)} for t in step.trials],
    }


def _gain(trial: Trial) -> dict[str, float]:
    return {"gain": round(trial.gain, _DIGITS), "error": round(trial.error, _DIGITS)}


def _rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    return [round(float(value), _DIGITS) for value in values]


def _numbers(values: Sequence[float] | np.ndarray) -> str:
    return " ".join(f"{value:8.4f}" for value in values)


def _shown(options: Options) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())
