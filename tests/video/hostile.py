"""Files that a video archive really holds and that decoders trip over: one function a kind, and what may become of it.

Every file must end as frames or as an error row with one of the codes named for it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.video.samples import numbered_frame, write_audio, write_variable_rate_video, write_video

FRAMES = "frames"  # the outcome that is no error
DAMAGED = frozenset({FRAMES, "truncated", "not_a_video", "no_video_stream", "no_frames", "decode_failed"})
"""What may become of a file with damage at a place that nobody chose."""


@dataclass(frozen=True)
class Hostile:
    """One file, and the outcomes that are right for it: error codes, or FRAMES."""

    name: str
    path: Path
    outcomes: frozenset[str]


def corpus(folder: Path, cuts: int = 20, flips: int = 200) -> Iterator[Hostile]:
    """Write every kind into `folder`: `cuts` lengths of a truncated file, `flips` seeds of flipped bits."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, write, outcomes in _KINDS:
        path = folder / f"{name}.mp4" if "." not in name else folder / name
        write(path)
        yield Hostile(name, path, frozenset(outcomes))
    yield from _truncated(folder, cuts)
    yield from _flipped(folder, flips)


def _truncated(folder: Path, cuts: int) -> Iterator[Hostile]:
    for index_first in (False, True):
        whole = write_video(folder / "whole.mp4", frames=60, index_first=index_first).read_bytes()
        for number in range(cuts):
            name = f"truncated-{'index-first' if index_first else 'index-last'}-{number:02d}"
            path = folder / f"{name}.mp4"
            path.write_bytes(whole[: len(whole) * (number + 1) // (cuts + 1)])
            yield Hostile(name, path, DAMAGED)


def _flipped(folder: Path, flips: int) -> Iterator[Hostile]:
    whole = write_video(folder / "whole.mp4", frames=60).read_bytes()
    for seed in range(flips):
        rng = np.random.default_rng(seed)
        data = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, len(data), size=int(rng.integers(1, 40)))
        data[places] ^= np.uint8(1) << rng.integers(0, 8, size=len(places)).astype(np.uint8)
        path = folder / f"flipped-{seed:03d}.mp4"
        path.write_bytes(data.tobytes())
        yield Hostile(path.stem, path, DAMAGED | {"frame_too_large", "decoder_out_of_memory"})


def _text(path: Path) -> None:
    path.write_text("this is not a video\n" * 50)


def _image(path: Path) -> None:
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(5), format="rgb24")))
        container.mux(stream.encode())


def _wrong_extension(path: Path) -> None:
    write_video(path.with_name("right.mp4")).rename(path)


def _encode(
    path: Path,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    frames: int = 30,
    muxer: str | None = None,
    pts: Callable[[int], int] | None = None,
) -> None:
    """Numbered frames at 10 a second; `pts` gives each frame's time in milliseconds."""
    with av.open(str(path), "w", format=muxer, options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream(codec, rate=10, options={"preset": "ultrafast", "g": "10"} | (options or {}))
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24").reformat(format=pix_fmt)
            if pts is not None:
                picture.pts, picture.time_base = pts(number), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _ten_bit(path: Path) -> None:
    _encode(path, "libx265", "yuv420p10le", {"x265-params": "log-level=none:pools=1"})


def _full_chroma(path: Path) -> None:
    _encode(path, pix_fmt="yuv444p")


def _interlaced(path: Path) -> None:
    _encode(path, options={"x264-params": "interlaced=1:tff=1"})


def _rotated(path: Path) -> None:
    """The track header's matrix says a quarter turn (ISO 14496-12, 8.3.2)."""
    write_video(path)
    turn = (0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    _patch(path, b"tkhd", 40, struct.pack(">9i", *turn))


def _variable_rate(path: Path) -> None:
    write_variable_rate_video(path, [0.0, 0.04, 0.9, 1.0, 4.0, 4.01, 9.5])


def _before_zero(muxer: str) -> Callable[[Path], None]:
    """Times from −1.5 s on: read back as they are (mpegts), as 2³² ms more (flv), or not at all (matroska)."""
    return lambda path: _encode(path, muxer=muxer, pts=lambda number: number * 100 - 1500)


def _jumping_clock(path: Path) -> None:
    """The clock jumps by eleven days in the middle."""
    _encode(path, muxer="mpegts", pts=lambda number: number * 100 + (10**9 if number > 15 else 0))


def _patch(path: Path, box: bytes, at: int, data: bytes) -> None:
    """Overwrite bytes of the first box of that type, `at` bytes behind its type's end."""
    whole = bytearray(path.read_bytes())
    start = whole.index(box) + len(box) + at
    whole[start : start + len(data)] = data
    path.write_bytes(whole)


def _zero_duration(path: Path) -> None:
    """Every frame is said to last no time at all."""
    write_video(path)
    _patch(path, b"stts", 12, struct.pack(">I", 0))


def _over_reported(path: Path) -> None:
    """The index counts 500 frames where 20 are."""
    write_video(path)
    _patch(path, b"stts", 8, struct.pack(">I", 500))
    _patch(path, b"stsz", 8, struct.pack(">I", 500))


def _absurd_count(path: Path) -> None:
    """The index counts four thousand million frames."""
    write_video(path)
    _patch(path, b"stsz", 8, struct.pack(">I", 0xFFFFFFF0))
    _patch(path, b"stts", 8, struct.pack(">I", 0xFFFFFFF0))


def _no_keyframes(path: Path) -> None:
    """The index names a keyframe that does not exist, and no other."""
    write_video(path, frames=40)
    _patch(path, b"stss", 4, struct.pack(">II", 1, 4000))


def _starts_inside_a_gop(path: Path) -> None:
    """A recording that was cut between two keyframes: what comes first refers to what is missing."""
    whole = path.with_name("gops.mp4")
    write_video(whole, frames=60, gop=25)
    with av.open(str(whole)) as source, av.open(str(path), "w", format="mpegts") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if packet.dts is not None and number >= 7:
                packet.stream = copy
                target.mux(packet)
    whole.unlink()


def _enormous(path: Path) -> None:
    """Motion JPEG whose headers speak of 16,000 × 16,000 pixels (FFmpeg itself refuses little more)."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    place = -1
    while (place := data.find(b"\xff\xc0\x00\x11\x08", place + 1)) >= 0:  # start of frame: height, width
        data[place + 5 : place + 9] = struct.pack(">HH", 16000, 16000)
    path.write_bytes(data)
    box = data.index(b"mp4v") if b"mp4v" in data else data.index(b"jpeg")
    _patch(path, bytes(data[box : box + 4]), 24, struct.pack(">HH", 16000, 16000))


_KINDS: list[tuple[str, Callable[[Path], object], set[str]]] = [
    ("zero-byte", lambda path: path.write_bytes(b""), {"empty_file"}),
    ("text", _text, {"not_a_video"}),
    ("image", _image, {FRAMES, "not_a_video"}),
    ("audio-only", write_audio, {"no_video_stream"}),
    ("wrong-extension.txt", _wrong_extension, {FRAMES}),
    ("one-frame", lambda path: write_video(path, frames=1), {FRAMES}),
    ("zero-duration", _zero_duration, {FRAMES, "no_frames", "decode_failed"}),
    ("negative-times.ts", _before_zero("mpegts"), {FRAMES}),
    ("huge-times.flv", _before_zero("flv"), {FRAMES}),
    ("missing-times.mkv", _before_zero("matroska"), {FRAMES, "no_frames", "decode_failed"}),
    ("jumping-clock.ts", _jumping_clock, {FRAMES}),
    ("over-reported", _over_reported, set(DAMAGED)),
    ("absurd-count", _absurd_count, set(DAMAGED)),
    ("no-keyframes", _no_keyframes, set(DAMAGED)),
    ("starts-inside-a-gop.ts", _starts_inside_a_gop, {FRAMES, "decode_failed"}),
    ("enormous", _enormous, {"frame_too_large", "decoder_out_of_memory", "decode_failed"}),
    ("ten-bit", _ten_bit, {FRAMES}),
    ("full-chroma", _full_chroma, {FRAMES}),
    ("interlaced", _interlaced, {FRAMES}),
    ("rotated", _rotated, {FRAMES}),
    ("variable-rate", _variable_rate, {FRAMES}),
]
