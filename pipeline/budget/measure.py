"""Answer a few sampled videos as a run would, at several retentions, and fit what the phases take."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline.answer_stream import AnswerStream
from pipeline.benchmark.machine import describe_machine
from pipeline.budget.profile import Profile
from pipeline.budget.sample import ReadSample
from pipeline.budget.workload import done_flops
from pipeline.config import JobConfig
from pipeline.engine import Answer, Request, VideoLLM
from pipeline.errors import RowError, UserError
from pruning import StagePlan, make_pruner

LEVELS = (1.0, 0.5, 0.25, 0.1)
"""The retentions at which the sample is answered, and that of the job where it names one."""
_MOST_QUESTIONS = 8  # of one video: more would only take longer


@dataclass(frozen=True)
class _Level:
    """Means over the rows that were answered at one retention; seconds."""

    retention: float
    prefill_s: float
    done_flops: float
    prune_s_per_token: float


def measure(llm: VideoLLM, config: JobConfig, videos: Sequence[ReadSample]) -> Profile:
    """The profile of a loaded model on the videos whose frames are at hand; `config` has its options written out.

    Raises UserError where none of them can be answered.
    """
    import torch

    groups = [group for video in videos if (group := _requests(video, config))]
    if not groups:
        raise UserError("no sampled video could be read and asked: there is nothing to measure")
    _answers(llm, config, groups[:1], LEVELS[-1])  # the first call of a process is slow
    _answers(llm, config, groups[:1], LEVELS[0])
    levels: list[_Level] = []
    everything: list[Answer] = []
    vision_s, frames = 0.0, 0
    for retention in _levels(config):
        answers = _answers(llm, config, groups, retention)
        if answers:
            everything += [answer for answer, _ in answers]
            vision_s += sum(answer.stats.vision_ms for answer, _ in answers) / 1e3
            answered = {id(group): group[0].num_frames for _, group in answers}
            frames += sum(answered.values())
            levels.append(_level(llm, config, retention, answers))
    if not everything:
        raise UserError("the model could not answer any of the sampled rows: there is nothing to measure")
    per_row, per_flop = fit_line([level.done_flops for level in levels], [level.prefill_s for level in levels])
    pruned = [level for level in levels if level.retention < 1]
    prune, prune_kept = fit_line([level.retention for level in pruned], [level.prune_s_per_token for level in pruned])
    tokens = sum(answer.stats.output_tokens for answer in everything)
    info = llm.info
    return Profile(
        model=info.name,
        model_hash=info.model_hash,
        dtype=info.dtype,
        device=info.device,
        machine=str(describe_machine(torch.device(info.device))["device"]),
        threads=torch.get_num_threads(),
        quantization=info.quantization,
        pruning_method=config.pruning.method,
        batch_size=config.cluster.batch_size,
        videos=len(groups),
        vision_s_per_frame=vision_s / frames,
        prefill_s_per_row=per_row,
        prefill_s_per_flop=per_flop,
        prune_s_per_token=prune,
        prune_s_per_kept_token=prune_kept,
        generate_s_per_token=sum(answer.stats.generate_ms for answer in everything) / 1e3 / tokens,
        output_tokens=tokens / len(everything),
    )


def fit_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """A constant and a slope, neither below 0, by least squares of the relative errors; one x gives a slope alone."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if not len(xs) or not ys.any():
        return 0.0, 0.0
    weights = 1 / np.maximum(ys, ys.max() * 1e-3)
    slope_alone = 0.0, float((weights**2 * xs * ys).sum() / (weights**2 * xs * xs).sum())
    if np.ptp(xs) == 0:
        return slope_alone
    scale = xs.max()
    design = np.stack([np.ones_like(xs), xs / scale], axis=1) * weights[:, None]
    constant, slope = (float(number) for number in np.linalg.lstsq(design, ys * weights, rcond=None)[0])
    if constant < 0:
        return slope_alone
    if slope < 0:
        return float((weights**2 * ys).sum() / (weights**2).sum()), 0.0
    return constant, slope / scale


def _levels(config: JobConfig) -> list[float]:
    asked = config.budget.retention
    return sorted({*LEVELS, *([] if asked is None else [asked])}, reverse=True)


def _requests(video: ReadSample, config: JobConfig) -> list[Request]:
    """The questions about a video, as an answerer asks them."""
    if video.frames is None:
        return []
    generation = config.generation
    return [
        Request(
            frames=video.frames,
            prompt=question.prompt,
            max_new_tokens=question.max_new_tokens or generation.max_new_tokens,
            frame_times_s=video.frame_times_s,
            duration_s=video.duration_s,
            video_key=str(id(video)),
            seed=generation.seed,
            temperature=generation.temperature,
            top_p=generation.top_p,
            stop=generation.stop,
            time_instruction=generation.time_instruction,
        )
        for question in video.questions[:_MOST_QUESTIONS]
    ]


def _answers(
    llm: VideoLLM, config: JobConfig, groups: Sequence[list[Request]], retention: float
) -> list[tuple[Answer, list[Request]]]:
    """Each answer with the requests of its video, asked as an answerer is: a batch of calls at once, a video each."""
    stream = AnswerStream(llm, config.pruning.model_copy(update={"retention": retention}))
    with ThreadPoolExecutor(config.cluster.batch_size) as callers:
        outcomes = list(callers.map(stream.answer, groups))
    return [
        (outcome.result, group)
        for group, of_group in zip(groups, outcomes, strict=True)
        for outcome in of_group
        if not isinstance(outcome.result, RowError)
    ]


def _level(llm: VideoLLM, config: JobConfig, retention: float, answers: list[tuple[Answer, list[Request]]]) -> _Level:
    pruner = make_pruner(config.pruning)
    flops = 0.0
    for answer, group in answers:
        told = answer.stats
        plan = StagePlan(told.video_tokens, llm.shape.layers, tuple(told.stage_layers), tuple(told.stage_tokens))
        flops += done_flops(plan, told.prompt_tokens, len(group), llm.shape, pruner)
    stats = [answer.stats for answer, _ in answers]
    return _Level(
        retention=retention,
        prefill_s=sum(told.prefill_ms for told in stats) / 1e3 / len(stats),
        done_flops=flops / len(stats),
        prune_s_per_token=sum(told.prune_ms for told in stats) / 1e3 / sum(told.video_tokens for told in stats),
    )
