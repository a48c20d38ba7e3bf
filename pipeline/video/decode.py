"""Read the frames that a job asks for out of one video file, in the process that calls.

Nothing here can be interrupted: a caller that needs a deadline calls it through `reader.VideoReader`.
What needs FFmpeg is imported when a file is read, so that this module costs nothing to import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.errors import RowError
from pipeline.video.file import LocalFile, VideoFile
from pipeline.video.frame_table import FrameTable
from pipeline.video.policies import choose_frames
from pipeline.video.sampling import Backend, Sampling
from pipeline.video.scenes import find_scenes
from pipeline.video.video_info import VideoInfo, VideoStream

if TYPE_CHECKING:
    from pipeline.frame_size import FrameSize
    from pipeline.video.container import OpenVideo

Decoder = Literal["decord", "pyav"]
Shape = tuple[int, int, int, int]

_THUMBNAIL = 32  # pixels along each side of the pictures in which scenes are looked for
_DECORD_CODECS = {"h264", "hevc", "vp9", "vp8", "mpeg4", "mpeg2video"}  # those that its FFmpeg of 2018 can decode


@dataclass(frozen=True)
class DecodedVideo:
    """Frames of one video: uint8 RGB [T, H, W, 3], and when each begins, in seconds [T]."""

    frames: np.ndarray
    frame_times_s: list[float]
    info: VideoInfo
    backend: Decoder


def decode_frames(
    source: Path | VideoFile,
    sampling: Sampling,
    frame_size: FrameSize | None = None,
    backend: Backend = "auto",
    on_planned: Callable[[VideoInfo], None] = lambda info: None,
    on_decoder: Callable[[Decoder], None] = lambda decoder: None,
    allocate: Callable[[Shape], np.ndarray] = lambda shape: np.empty(shape, np.uint8),
) -> DecodedVideo:
    """Decode the frames that `sampling` chooses, as they are shown, at `frame_size` (None: as large as they are).

    `backend` "auto" takes PyAV, and decord for a second opinion where that fails; a named one is the only one
    tried. `on_planned` is called once, when the bytes are at hand and decoding is about to begin, `on_decoder`
    before each decoder is tried. `allocate` makes the uint8 array [T, H, W, 3] that is filled.
    Raises RowError: those of `probe`, and decode/no_frames, truncated, decode_failed,
    generate/invalid_request (frames of a shape that the model cannot look at).
    """
    from pipeline.video.container import open_video
    from pipeline.video.mp4_boxes import is_cut_short
    from pipeline.video.packet_scan import frame_table_of
    from pipeline.video.probe import describe

    file = _local_file(source) if isinstance(source, Path) else source
    try:
        with open_video(file) as video:  # once for all: it can cost as much as decoding a frame
            stream = describe(video)
            height, width = _size(stream.info, frame_size)
            table = frame_table_of(video)
            indices = _choose(file, stream, table, sampling, backend, on_planned)
            frames = allocate((len(indices), height, width, 3))
            decoder = _decode(video, stream, table, indices, frames, backend, on_decoder)
    except RowError as error:
        if error.code == "decode_failed" and is_cut_short(file):
            raise RowError("decode", "truncated", error.message) from error
        raise
    return DecodedVideo(frames, table.times_s[indices, 0].tolist(), stream.info, decoder)


def _local_file(path: Path) -> LocalFile:
    try:
        return LocalFile(path)
    except OSError as error:
        raise RowError("decode", "not_a_video", "this is no file") from error


def _size(info: VideoInfo, frame_size: FrameSize | None) -> tuple[int, int]:
    """Height and width in pixels of the frames that are handed out."""
    if frame_size is None:
        return info.height, info.width
    try:
        return frame_size.of(info.height, info.width)
    except ValueError as error:
        raise RowError("generate", "invalid_request", str(error)) from error


def _choose(
    file: VideoFile,
    stream: VideoStream,
    table: FrameTable,
    sampling: Sampling,
    backend: Backend,
    on_planned: Callable[[VideoInfo], None],
) -> np.ndarray:
    """The indices of the frames wanted, at least one; when it returns, decoding may begin."""
    starts_s = None
    if sampling.policy == "scene":
        from pipeline.video.decode_pyav import read_thumbnails

        def look_at(keyframes: np.ndarray) -> Iterator[np.ndarray]:
            file.will_read(table.byte_ranges(keyframes))
            return read_thumbnails(file, table, keyframes, _THUMBNAIL, _THUMBNAIL)

        on_planned(stream.info)  # finding scenes is decoding already
        starts_s = find_scenes(table, sampling, look_at)
    indices = choose_frames(table, sampling, starts_s)
    if len(indices) == 0:
        raise RowError("decode", "no_frames", f"no frame is shown {_range(sampling)}")
    file.will_read([(0, file.size)] if backend == "decord" else table.byte_ranges(indices))
    if sampling.policy != "scene":
        on_planned(stream.info)
    return indices


def _decode(
    video: OpenVideo,
    stream: VideoStream,
    table: FrameTable,
    indices: np.ndarray,
    frames: np.ndarray,
    backend: Backend,
    on_decoder: Callable[[Decoder], None],
) -> Decoder:
    """Fill `frames`; returns which decoder did it. Where all fail, the error is that of PyAV, which knows more."""
    failures: dict[Decoder, RowError] = {}
    for decoder in _decoders(video.file, stream) if backend == "auto" else (backend,):
        on_decoder(decoder)
        try:
            _fill(frames, _read_frames(decoder, video, stream, table, indices), indices)
            return decoder
        except RowError as error:
            if error.stage != "decode":  # bytes that cannot be fetched
                raise
            failures[decoder] = error
    raise failures.get("pyav") or failures["decord"]


def _decoders(file: VideoFile, stream: VideoStream) -> tuple[Decoder, ...]:
    """Those that may be able to read the file, in the order in which they are tried.

    PyAV costs less CPU time on every kind of file: it decodes only what the wanted frames need, and where
    that is all of them, its newer FFmpeg takes between a quarter and two thirds less than decord's.
    """
    return ("pyav", "decord") if file.path is not None and stream.info.codec in _DECORD_CODECS else ("pyav",)


def _read_frames(
    decoder: Decoder, video: OpenVideo, stream: VideoStream, table: FrameTable, indices: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    if decoder == "decord":
        from pipeline.video import decode_decord

        return decode_decord.read_frames(video.file, table, indices, stream.rotation)
    from pipeline.video import decode_pyav

    return decode_pyav.read_frames(video, table, indices, stream.rotation)


def _fill(frames: np.ndarray, decoded: Iterator[tuple[int, np.ndarray]], indices: np.ndarray) -> None:
    """Put each decoded frame into its place of `frames` [T, H, W, 3], at the size that these have.

    One resize does all there is to do: pixels that are not square, a stream whose size changes on
    the way, the size that a model wants. A frame that has the size already keeps its pixels.
    """
    for index, frame in decoded:
        place = int(indices.searchsorted(index))
        if frame.shape != frames.shape[1:]:
            from pipeline.resize import fit_frame  # torch, only where a pixel has to change

            frame = fit_frame(frame, frames.shape[1], frames.shape[2])
        frames[place] = frame


def _range(sampling: Sampling) -> str:
    begin = "the start" if sampling.start_s is None else f"{sampling.start_s:g} s"
    end = "the end" if sampling.end_s is None else f"{sampling.end_s:g} s"
    return f"from {begin} to {end}"
