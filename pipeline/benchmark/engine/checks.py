"""What the measured rows say about the engine's aims, in a line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.benchmark.check import Check
from pipeline.benchmark.engine.ceilings import Ceilings
from pipeline.benchmark.engine.measurement import Row
from pipeline.benchmark.engine.ours import SYSTEM


def check_rows(rows: Sequence[Row], ceilings: Ceilings, is_cuda: bool) -> list[Check]:
    """The aims that these rows can judge, for the kind of device."""
    table = _Table(rows)
    return _on_gpu(table, ceilings) if is_cuda else _on_cpu(table)


def check_growth(peaks: Mapping[int, float]) -> list[Check]:
    """How the peak of the longest video compares with that of the shortest; `peaks` are MiB by frames."""
    if len(peaks) < 2:
        return []
    few, many = min(peaks), max(peaks)
    sizes = f"{peaks[many]:,.0f} / {peaks[few]:,.0f} MiB"
    bound = 4.5 / 4 * many / few  # of four times the frames 4.5 times the memory
    return [Check(f"peak beside weights, {many} / {few} frames ({sizes})", peaks[many] / peaks[few], bound, True)]


class _Table:
    """Rows, by what the checks ask for."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.dense = [row for row in rows if row.system != SYSTEM]
        self.ours = [row for row in rows if row.system == SYSTEM and row.batch == 1]
        self.batched = [row for row in rows if row.system == SYSTEM and row.batch > 1]
        self.new_tokens = sorted({row.new_tokens for row in rows})
        self.segments = sorted({row.segments for row in self.ours if row.segments is not None})

    def alone(self, retention: float, new_tokens: int, segments: int | None = None) -> list[Row]:
        """Our rows at batch 1."""
        return [
            row
            for row in self.ours
            if (row.retention, row.new_tokens) == (retention, new_tokens) and segments in (None, row.segments)
        ]

    def dense_row(self, new_tokens: int, is_best: bool) -> Row | None:
        """Transformers at batch 1, or at the batch that takes least time a video."""
        rows = [row for row in self.dense if row.new_tokens == new_tokens and (is_best or row.batch == 1)]
        return min(rows, key=_video_ms, default=None)


def _on_cpu(table: _Table) -> list[Check]:
    checks: list[Check] = []
    for new_tokens in table.new_tokens:
        dense, ours = table.dense_row(new_tokens, is_best=False), table.alone(1.0, new_tokens)
        if dense and ours:
            worst = max(row.total_ms for row in ours) / dense.total_ms
            checks.append(Check(f"unpruned, {new_tokens} new tokens, engine / transformers", worst, 1.05, True))
    for retention in (0.3, 0.1):
        checks += _speed_ups(table, retention)
    for row in table.batched:
        alone = [r for r in table.alone(row.retention, row.new_tokens) if r.segments == row.segments]
        if alone and row.decode_tokens_per_s and alone[0].decode_tokens_per_s:
            gain = row.decode_tokens_per_s / alone[0].decode_tokens_per_s
            name = f"decoding {row.batch} together at {row.retention:.0%}, {row.new_tokens} new tokens, tokens/s"
            checks.append(Check(f"{name} / one by one", gain, 3.0, False))
    for segments in table.segments:
        shares = [
            row.prune_ms / row.total_ms
            for row in table.ours
            if row.segments == segments and row.retention < 1 and row.prune_ms is not None
        ]
        if shares:
            bound = 0.10 if segments == 1 else 0.05
            name = f"pruning's largest share of engine time, {segments} segments"
            checks.append(Check(name, max(shares), bound, True, "%"))
    return checks


def _on_gpu(table: _Table, ceilings: Ceilings) -> list[Check]:
    checks: list[Check] = []
    full = [row for row in table.ours if row.retention == 1.0]
    pruned = [row for row in table.ours if row.retention == 0.3]
    if full:
        reached = min(row.achieved_tflops for row in full) / ceilings.matmul_tflops
        checks.append(Check("unpruned prefill / matmul ceiling", reached, 0.5, False, "%"))
    for row in table.batched:
        if row.achieved_gbs is not None:
            name = f"decoding {row.batch} together, {row.new_tokens} new tokens, bytes/s / copy ceiling"
            checks.append(Check(name, row.achieved_gbs / ceilings.copy_gbs, 0.6, False, "%"))
    if pruned:
        share = max((row.prune_ms or 0.0) / (row.prefill_ms + (row.prune_ms or 0.0)) for row in pruned)
        checks.append(Check("pruning's largest share of prefill at 30%", share, 0.05, True, "%"))
    for new_tokens in table.new_tokens:
        alone, best = table.dense_row(new_tokens, is_best=False), table.dense_row(new_tokens, is_best=True)
        rows = [row for row in pruned if row.new_tokens == new_tokens]
        if not (alone and best and rows):
            continue
        prefill = alone.prefill_ms / max(_prefill_ms(row) for row in rows)
        checks.append(Check(f"prefill at 30% over transformers', {new_tokens} new tokens", prefill, 3.0, False))
        single = alone.total_ms / max(row.total_ms for row in rows)
        checks.append(Check(f"frames to {new_tokens} tokens at 30% over transformers', batch 1", single, 4.0, False))
        together = [row for row in table.batched if (row.retention, row.new_tokens) == (0.3, new_tokens)]
        ours = min(_video_ms(row) for row in (*rows, *together))
        name = f"frames to {new_tokens} tokens at 30% over transformers', own best batches"
        checks.append(Check(name, _video_ms(best) / ours, 2.2, False))
    return checks


def _speed_ups(table: _Table, retention: float) -> list[Check]:
    """Prefill, pruning included, beside the engine's own unpruned one; FLOPs say how much is to be had."""
    checks: list[Check] = []
    for segments in table.segments:
        kept = [row for row in table.ours if (row.retention, row.segments) == (retention, segments)]
        full = [row for row in table.ours if (row.retention, row.segments) == (1.0, segments)]
        if kept and full:
            gain = sum(map(_prefill_ms, full)) / len(full) / (sum(map(_prefill_ms, kept)) / len(kept))
            name = f"prefill at {retention:.0%} over unpruned, of the inverse FLOPs ratio, {segments} segments"
            checks.append(Check(f"{name} ({gain:.2f}× faster)", gain * kept[0].flops_ratio, 0.9, False))
            done = kept[0].achieved_tflops * kept[0].prefill_ms / (full[0].achieved_tflops * full[0].prefill_ms)
            name = f"the same, of the FLOPs that were done, {segments} segments"
            checks.append(Check(name, gain * done, 0.9, False))
    return checks


def _prefill_ms(row: Row) -> float:
    return row.prefill_ms + (row.prune_ms or 0.0)


def _video_ms(row: Row) -> float:
    return row.total_ms / row.batch
