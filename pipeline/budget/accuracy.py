"""What share of its unpruned accuracy a model keeps, where that was measured: the table beside the built-in model."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from importlib.resources import files

import numpy as np
import pyarrow.parquet as pq

from pipeline.config import JobConfig
from pruning.config import written_out

_REPORTS = files("pipeline.tiny") / "reports"


def expected_share(config: JobConfig, model_hash: str, retention: float) -> float | None:
    """Accuracy over the unpruned model's, interpolated between the retentions that were evaluated.

    None, unknown: another model, other options, frames or number formats than those of the evaluation, or a retention
    below the least that was evaluated. `config` is the job as it was written, its options not yet resolved.
    """
    evaluated = _evaluated(config.pruning.method, model_hash)
    is_as_evaluated = (
        not written_out(config.pruning)
        and config.pruning.preset is None
        and config.pruning.calibration == "auto"
        and config.pruning.kv_retention == 1
        and config.video.frames == "auto"
        and config.model.quantization == "none"
    )
    if not evaluated or not is_as_evaluated:
        return None
    at, shares = zip(*sorted(evaluated.items()), strict=True)
    return float(np.interp(retention, at, shares)) if retention >= at[0] - 1e-3 else None


def _evaluated(method: str, model_hash: str) -> Mapping[float, float]:
    """Shares by the retention that was asked for; empty for a model that was not evaluated."""
    try:
        told = json.loads((_REPORTS / "pruned.json").read_text())
        table = pq.read_table(io.BytesIO((_REPORTS / "comparison" / "table.parquet").read_bytes()))
    except FileNotFoundError:  # an installation without the reports
        return {}
    if told["model_hash"] != model_hash:
        return {}
    rows = (row for row in table.to_pylist() if row["status"] == "ok" and row["comparison"] == "mean")
    shares = {row["retention_asked"]: row["accuracy_share"] for row in rows if row["method"] == method}
    return shares | {1.0: 1.0} if shares else {}
