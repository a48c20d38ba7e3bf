"""Video: a small clip of each codec, written on the spot and read by the reader that jobs use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np

from pipeline.doctor.check import Finding
from pipeline.errors import RowError
from pipeline.video.file import LocalFile
from pipeline.video.limits import Limits
from pipeline.video.reader import VideoReader
from pipeline.video.sampling import Backend, Sampling

_GREYS = (40, 90, 140, 190)  # of the clip's frames
_LIMITS = Limits(decode_timeout_s=20.0)
_REINSTALL = "python -m pip install --force-reinstall --only-binary av av"


@dataclass(frozen=True)
class Codec:
    """A codec as people call it and as FFmpeg does; `encoder` with `options` writes it into a file with `suffix`."""

    title: str
    name: str
    encoder: str
    suffix: str = ".mp4"
    options: dict[str, str] = field(default_factory=dict)


CODECS = (
    Codec("H.264", "h264", "libx264", options={"preset": "ultrafast"}),
    Codec("HEVC", "hevc", "libx265", options={"preset": "ultrafast", "x265-params": "log-level=none"}),
    Codec("VP9", "vp9", "libvpx-vp9", ".webm", {"deadline": "realtime", "cpu-used": "8"}),
    Codec("AV1", "av1", "libsvtav1", options={"preset": "10"}),
)


def look_at_codecs() -> Finding:
    """Whether H.264, HEVC, VP9 and AV1 are decoded; where this FFmpeg cannot write one, whether a decoder is there."""
    version = ".".join(map(str, av.library_versions["libavcodec"][:2]))
    library = f"PyAV {av.__version__} with libavcodec {version}"
    decoded, unwritten, failed = [], [], []
    with _clips() as folder, VideoReader(_LIMITS) as reader:
        for codec in CODECS:
            clip = _write(codec, folder)
            if clip is None:
                (unwritten if _has(codec.name, "r") else failed).append(codec.title)
            else:
                (failed if _problem(reader, clip, "pyav") else decoded).append(codec.title)
    told = [f"{library}: decoded {', '.join(decoded) or 'none'}"]
    told += [f"there is a decoder of {', '.join(unwritten)}"] if unwritten else []
    if not failed:
        return Finding("ok", "; ".join(told))
    status = "fail" if "H.264" in failed else "warn"
    return Finding(status, "; ".join([*told, f"not decoded {', '.join(failed)}"]), _REINSTALL)


def look_at_decord() -> Finding:
    """Whether decord works: it is asked where PyAV has failed."""
    with _clips() as folder, VideoReader(_LIMITS) as reader:
        clip = _write(CODECS[0], folder)
        if clip is None:
            return Finding("skipped", "no H.264 clip could be written to try it with")
        problem = _problem(reader, clip, "decord")
    if problem is None:
        return Finding("ok", "usable, for a second opinion where PyAV fails")
    return Finding(
        "warn", f"not usable ({problem}): no second opinion where PyAV fails", "python -m pip install decord"
    )


@contextmanager
def _clips() -> Iterator[Path]:
    os.environ.setdefault("SVT_LOG", "0")  # the AV1 encoder prints a page to stderr otherwise
    with TemporaryDirectory(prefix="hieravid-doctor-") as folder:
        yield Path(folder)


def _has(name: str, mode: str) -> bool:
    try:
        av.Codec(name, mode)
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _write(codec: Codec, folder: Path) -> Path | None:
    """A clip of one grey frame after another; None where there is no encoder."""
    if not _has(codec.encoder, "w"):
        return None
    path = folder / f"{codec.name}{codec.suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec.encoder, rate=5, options=codec.options)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for grey in _GREYS:
            picture = np.full((64, 64, 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def _problem(reader: VideoReader, clip: Path, backend: Backend) -> str | None:
    """What is wrong with how a clip comes back; None where all of its frames look as they were written."""
    try:
        frames = reader.read(LocalFile(clip), Sampling(len(_GREYS), "uniform"), None, backend).video.frames
    except RowError as error:
        return error.message
    if len(frames) != len(_GREYS) or np.abs(frames.mean(axis=(1, 2, 3)) - _GREYS).max() > 8:
        return "the frames come out wrong"
    return None
