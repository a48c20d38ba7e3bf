"""What a whole job takes at a retention: tokens, FLOPs, hours, duration, bytes and money."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from pipeline.budget.controller import RowCosts
from pipeline.budget.profile import Profile
from pipeline.budget.workload import Tokens, Workload
from pipeline.config import BudgetConfig

Bottleneck = Literal["model", "decode", "fetch"]
_POINTS = 24  # of a curve over retentions
FETCHES_AT_ONCE = 2  # videos in work at one decoder


@dataclass(frozen=True)
class PoolSizes:
    """The job's workers. `gpus` an answerer; 0: the answerers' own hours stand in for those of GPUs."""

    decoders: int
    answerers: int
    gpus: float
    threads: int

    @property
    def devices(self) -> float:
        """What GPU-hours are counted in."""
        return self.answerers * (self.gpus or 1.0)


@dataclass(frozen=True)
class VideoCosts:
    """Of a mean readable video: frames that the model sees; seconds of fetching, decoding and its CPU time; bytes."""

    frames: float
    fetch_s: float
    decode_s: float
    decode_cpu_s: float
    fetched_bytes: float


@dataclass(frozen=True)
class Estimate:
    """A job at one retention. `tokens` are sums over its rows, `busy_s` the seconds of each phase of all workers.

    `duration_s` is what the slowest pool takes, without starting. `gpu_hours` are those for which the answerers hold
    their GPUs, idle or not; `model_hours` those in which they work.
    """

    retention: float
    tokens: Tokens
    output_tokens: float
    busy_s: Mapping[str, float]
    pool_s: Mapping[Bottleneck, float]
    model_hours: float
    cpu_hours: float
    gpu_hours: float
    duration_s: float
    bytes: float
    usd: float | None

    @property
    def bottleneck(self) -> Bottleneck:
        """The pool that the others wait for."""
        return max(self.pool_s, key=lambda pool: self.pool_s[pool])

    @property
    def flops_ratio(self) -> float:
        """Mean of the rows' `flops_ratio`."""
        return self.tokens.ratio / self.tokens.rows if self.tokens.rows else 1.0


@dataclass(frozen=True)
class CostModel:
    """A job whose retention is open. `videos` and `rows` are those that are expected to be answered."""

    videos: float
    rows: float
    workload: Workload
    each: VideoCosts
    profile: Profile
    pools: PoolSizes
    usd_per_gpu_hour: float | None = None

    def at(self, retention: float) -> Estimate:
        """The estimate at a retention in (0, 1]."""
        sampled = self.workload.tokens(retention)
        tokens = sampled.scaled(self.rows / sampled.rows if sampled.rows else 0.0)
        profile, pools = self.profile, self.pools
        output_tokens = profile.output_tokens * self.rows
        busy_s = {
            "fetch": self.each.fetch_s * self.videos,
            "decode": self.each.decode_s * self.videos,
            "vision": profile.vision_s_per_frame * self.each.frames * self.videos,
            "prune": profile.prune_s_per_token * tokens.pruned
            + profile.prune_s_per_kept_token * (tokens.kept if tokens.pruned else 0.0),
            "prefill": profile.prefill_s_per_row * self.rows + profile.prefill_s_per_flop * tokens.done_flops,
            "generate": profile.generate_s_per_token * output_tokens,
        }
        model_s = sum(busy_s[phase] for phase in ("vision", "prune", "prefill", "generate"))
        pool_s: dict[Bottleneck, float] = {
            "model": model_s / pools.answerers,
            "decode": busy_s["decode"] / pools.decoders,
            "fetch": busy_s["fetch"] / (pools.decoders * FETCHES_AT_ONCE),
        }
        duration_s = max(pool_s.values())
        gpu_hours = duration_s / 3600 * pools.devices
        on_cpu = model_s * pools.threads if profile.device == "cpu" else model_s
        return Estimate(
            retention=retention,
            tokens=tokens,
            output_tokens=output_tokens,
            busy_s=busy_s,
            pool_s=pool_s,
            model_hours=model_s / 3600,
            cpu_hours=(self.each.decode_cpu_s * self.videos + on_cpu) / 3600,
            gpu_hours=gpu_hours,
            duration_s=duration_s,
            bytes=self.each.fetched_bytes * self.videos,
            usd=None if self.usd_per_gpu_hour is None else gpu_hours * self.usd_per_gpu_hour,
        )

    def for_rows(self, rows: float) -> CostModel:
        """The same of another number of such rows."""
        return replace(self, rows=rows, videos=self.videos * rows / self.rows if self.rows else 0.0)

    def per_row(self, least: float, most: float) -> RowCosts:
        """What the controller of a run starts from: a mean row at retentions from `least` to `most`."""
        retentions = [least * (most / least) ** (n / _POINTS) for n in range(_POINTS)] + [most]
        estimates = [self.at(retention) for retention in retentions]
        pruned_s = [(one.busy_s["prune"] + one.busy_s["prefill"]) / self.rows for one in estimates]
        steady = estimates[0].busy_s
        return RowCosts(
            steady_s=(steady["vision"] + steady["generate"]) / self.rows,
            decode_s=steady["decode"] / self.rows,
            retentions=retentions,
            # All tokens kept cost no pruning: just below, a row may cost more. The controller wants costs that rise.
            pruned_s=list(accumulate(pruned_s, max)),
        )


def budget_seconds(budget: BudgetConfig, pools: PoolSizes) -> float | None:
    """How long a run may take, in seconds of wall time; None for a budget that sets no time.

    Hours of GPUs are held as long as the run lasts, so they are a length of time, and so is their price.
    """
    hours = budget.gpu_hours
    if budget.usd is not None and budget.usd_per_gpu_hour is not None:
        hours = budget.usd / budget.usd_per_gpu_hour
    return budget.deadline if hours is None else hours * 3600 / pools.devices
