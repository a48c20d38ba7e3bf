"""How peak memory grows with the length of a video, each length in a process of its own."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from pipeline.benchmark.engine.ours import Engine, Preset
from pipeline.benchmark.engine.shapes import SHAPES
from pipeline.benchmark.engine.subject import Subject
from pipeline.benchmark.engine.video import make_video
from pipeline.engine.host_memory import resident_bytes
from pipeline.engine.info import choose_device, choose_dtype

FRAMES = (64, 256)

_RETENTION = 0.3
_SEGMENTS = 4
_NEW_TOKENS = 2


def peaks_beside_weights(
    shape: str,
    source: str | None,
    device: str,
    dtype: str,
    preset: Preset,
    threads: int,
    frames: Sequence[int] = FRAMES,
) -> dict[int, float]:
    """MiB that one request takes at its peak, by its number of frames, beside the weights and what is loaded with them.

    Its frames count: they are made after the first look at what is in use. Each is measured in a fresh
    process, since an allocator keeps what an earlier request has taken. Numbers that the system does not
    tell are left out. Raises ModelError as `Subject.load`, PromptTooLongError if the model has too few
    positions.
    """
    peaks: dict[int, float] = {}
    for count in frames:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as process:
            work = process.submit(_peak_in_this_process, shape, source, device, dtype, preset, threads, count)
            peak = work.result()
        if peak is not None:
            peaks[count] = peak
    return peaks


def _peak_in_this_process(
    shape: str, source: str | None, device: str, dtype: str, preset: Preset, threads: int, frames: int
) -> float | None:
    torch.set_num_threads(threads)
    on = choose_device(device)
    subject = Subject.load(SHAPES[shape], source, choose_dtype(dtype, on), on)
    engine = Engine(subject, preset)
    step = subject.family.frames_per_step
    # what the first request loads and compiles is not the video's
    engine([make_video(step, 1, subject.shape.frame_size)], _RETENTION, _NEW_TOKENS)
    gc.collect()
    before = torch.cuda.memory_allocated(on) if on.type == "cuda" else resident_bytes()
    video = make_video(frames, min(_SEGMENTS, frames // step), subject.shape.frame_size, step=step)
    peak = engine([video], _RETENTION, _NEW_TOKENS).peak_mb
    return None if peak is None or before is None else peak - before / 2**20
