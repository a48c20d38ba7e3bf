"""Every way to get frames that is measured, each as someone who knows it would write it, on one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.benchmark.decode.timeline import evenly

ISOLATED = "ours, isolated"


@dataclass(frozen=True)
class Task:
    """What is asked of a file: at most `frames` frames under a policy. `wanted_s` is when uniform ones begin."""

    path: Path
    policy: str
    frames: int
    wanted_s: list[float]


@dataclass(frozen=True)
class Shown:
    """Frames, uint8 RGB [T, H, W, 3], and when each begins, by the system's own account, in seconds [T]."""

    pixels: np.ndarray
    times_s: list[float]


Decode = Callable[[Task], Shown]


def _ours() -> AbstractContextManager[Decode]:
    """Our functions in the process that calls."""
    import av  # noqa: F401  # both decoders: which of them a clip takes is not known before
    import decord  # noqa: F401

    from pipeline.video.decode import decode_frames
    from pipeline.video.sampling import Sampling

    def decode(task: Task) -> Shown:
        policy: Any = task.policy
        video = decode_frames(task.path, Sampling(task.frames, policy))
        return Shown(video.frames, video.frame_times_s)

    return nullcontext(decode)


@contextmanager
def _ours_isolated() -> Iterator[Decode]:
    """The same in a child process, as jobs do it."""
    from pipeline.video.file import LocalFile
    from pipeline.video.reader import Limits, VideoReader
    from pipeline.video.sampling import Sampling

    with VideoReader(Limits()) as reader:

        def decode(task: Task) -> Shown:
            policy: Any = task.policy
            video = reader.read(LocalFile(task.path), Sampling(task.frames, policy)).video
            return Shown(video.frames, video.frame_times_s)

        yield decode


def _decord() -> AbstractContextManager[Decode]:
    """`get_batch` of evenly spread indices, or of the keyframes next to them."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)

    def decode(task: Task) -> Shown:
        reader = decord.VideoReader(str(task.path), ctx=decord.cpu(0), num_threads=1)
        indices = np.asarray(evenly(len(reader), task.frames))
        if task.policy == "keyframe":
            indices = _nearest(np.asarray(reader.get_key_indices()), indices)
        pixels = reader.get_batch(indices.tolist()).asnumpy()
        begins = np.asarray(reader.get_frame_timestamp([0, *indices.tolist()]), np.float64)[:, 0]
        return Shown(pixels, (begins[1:] - begins[0] + task.wanted_s[0]).tolist())

    return nullcontext(decode)


def _pyav() -> AbstractContextManager[Decode]:
    """Seek to the keyframe before a wanted time, unless what is decoded next is as near, and decode up to it.

    The wanted times are given, as they would be to someone who knows the file. Keyframes come from the
    container's own index; without one it decodes on.
    """
    import av

    def decode(task: Task) -> Shown:
        with av.open(str(task.path)) as container:
            stream = container.streams.video[0]
            stream.thread_count, stream.thread_type = 1, "NONE"
            base: Any = stream.time_base
            origin = (container.start_time or 0) / av.time_base
            wanted = np.round((np.asarray(task.wanted_s) + origin) / float(base)).astype(np.int64)
            container.seek(int(wanted[-1]), stream=stream)  # Matroska reads its index at the first seek
            keys = np.asarray([entry.timestamp for entry in stream.index_entries if entry.is_keyframe], np.int64)
            if len(keys):
                keys += wanted[0] - keys[0]  # the index of MP4 holds decoding times, some frames early
            if task.policy == "keyframe":
                stream.codec_context.skip_frame = "NONKEY"
                wanted = _nearest(keys, wanted)
            context = stream.codec_context
            pixels = np.empty((len(wanted), context.height, context.width, 3), np.uint8)
            found: list[int] = []
            container.seek(int(wanted[0]), stream=stream)
            frames = container.decode(stream)
            at = wanted[0] - 1  # pts of the frame decoded last
            for pts in wanted.tolist():
                before = keys[keys <= pts]
                if len(before) and before[-1] > at:
                    container.seek(pts, stream=stream)
                    frames = container.decode(stream)
                frame = next(frame for frame in frames if frame.pts is not None and frame.pts >= pts)
                pixels[len(found)] = frame.to_ndarray(format="rgb24")
                at = frame.pts or 0
                found.append(at)
        return Shown(pixels, [pts * float(base) - origin for pts in found])

    return nullcontext(decode)


def _torchcodec() -> AbstractContextManager[Decode]:
    """`get_frames_at` of evenly spread indices, in the mode that knows every frame's time."""
    import torch
    from torchcodec.decoders import VideoDecoder

    torch.set_num_threads(1)

    def decode(task: Task) -> Shown:
        decoder = VideoDecoder(task.path, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        batch = decoder.get_frames_at(evenly(len(decoder), task.frames))
        begins = np.asarray(batch.pts_seconds, np.float64) - (decoder.metadata.begin_stream_seconds or 0.0)
        return Shown(batch.data.numpy(), (begins + task.wanted_s[0]).tolist())

    return nullcontext(decode)


def _nearest(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The keyframes next to the wanted places, each once; as they are, where no keyframe is known."""
    if not len(keys):
        return wanted
    return np.unique(keys[np.abs(keys[None, :] - wanted[:, None]).argmin(axis=1)])


SYSTEMS: dict[str, Callable[[], AbstractContextManager[Decode]]] = {
    "ours": _ours,
    ISOLATED: _ours_isolated,
    "decord": _decord,
    "pyav": _pyav,
    "torchcodec": _torchcodec,
}
"""By name, what loads a system and gives the function that decodes."""

POLICIES: dict[str, tuple[str, ...]] = {
    "ours": ("uniform", "keyframe", "fps", "scene"),
    ISOLATED: ("uniform", "keyframe"),
    "decord": ("uniform", "keyframe"),
    "pyav": ("uniform", "keyframe"),
    "torchcodec": ("uniform",),
}
"""What each is asked; `uniform` is the exact one."""
