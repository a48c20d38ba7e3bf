"""Answer a few sampled videos as a run would, at several retentions, and fit what the phases take."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

from pipeline.answer_stream import AnswerStream
from pipeline.benchmark.machine import describe_machine
from pipeline.budget.fit import TimedRow, fit_profile, timed_row
from pipeline.budget.profile import Profile
from pipeline.budget.sample import ReadSample
from pipeline.config import JobConfig
from pipeline.engine import Request, VideoLLM
from pipeline.errors import RowError, UserError
from pruning import make_pruner

LEVELS = (1.0, 0.5, 0.25, 0.1)
"""The retentions at which the sample is answered, and that of the job where it names one."""
_MOST_QUESTIONS = 8  # of one video: more would only take longer


def measure(llm: VideoLLM, config: JobConfig, videos: Sequence[ReadSample]) -> Profile:
    """The profile of a loaded model on the videos whose frames are at hand; `config` has its options written out.

    Raises UserError where none of them can be answered.
    """
    import torch

    groups = [group for video in videos if (group := _requests(video, config))]
    if not groups:
        raise UserError("no sampled video could be read and asked: there is nothing to measure")
    _answer(llm, config, [_at(groups[0], LEVELS[-1])])  # the first call of a process is slow
    _answer(llm, config, [_at(groups[0], LEVELS[0])])
    # All in one stream: between the first and the last answer the engine is as full as in a run.
    rows = _answer(llm, config, [_at(group, retention) for retention in _levels(config) for group in groups])
    if not rows:
        raise UserError("the model could not answer any of the sampled rows: there is nothing to measure")
    machine = str(describe_machine(torch.device(llm.info.device))["device"])
    facts = {
        "model": llm.info.name,
        "model_hash": llm.info.model_hash,
        "dtype": llm.info.dtype,
        "device": llm.info.device,
        "quantization": llm.info.quantization,
        "pruning_method": config.pruning.method,
    }
    return fit_profile(rows, facts, machine, torch.get_num_threads(), config.cluster.batch_size, len(groups))


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


def _at(group: Sequence[Request], retention: float) -> list[Request]:
    """The same at a retention; what was computed for another is not shared."""
    return [replace(request, retention=retention, video_key=f"{request.video_key} {retention}") for request in group]


def _answer(llm: VideoLLM, config: JobConfig, groups: Sequence[list[Request]]) -> list[TimedRow]:
    """What the answers took, asked for as an answerer is: a batch of calls at once, a video each."""
    stream = AnswerStream(llm, config.pruning)
    pruner = make_pruner(config.pruning)
    with ThreadPoolExecutor(config.cluster.batch_size) as callers:
        asked = list(callers.map(stream.answer, groups))
    rows: list[TimedRow] = []
    for group, outcomes in zip(groups, asked, strict=True):
        answered = [outcome.result.stats for outcome in outcomes if not isinstance(outcome.result, RowError)]
        rows += [timed_row(asdict(told), group[0].num_frames, len(answered), llm.shape, pruner) for told in answered]
    return rows
