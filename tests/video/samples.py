"""Small real video files for the tests, written with PyAV: every frame shows its own number."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

STRIPES = 8  # a frame's number is written as eight black or white vertical stripes (bits)


def numbered_frame(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """An RGB picture [height, width, 3] whose vertical stripes are the bits of `number`."""
    bits = [(number >> bit) & 1 for bit in range(STRIPES)]
    columns = np.repeat(np.array(bits, np.uint8) * 215 + 20, -(-width // STRIPES))[:width]
    return np.broadcast_to(columns[None, :, None], (height, width, 3)).copy()


def read_number(frame: np.ndarray) -> int:
    """The number that a decoded frame [height, width, 3] shows."""
    width = frame.shape[1] // STRIPES
    bits = [frame[:, i * width + width // 4 : (i + 1) * width - width // 4].mean() > 127 for i in range(STRIPES)]
    return sum(1 << i for i, bit in enumerate(bits) if bit)


def write_video(
    path: Path,
    frames: int = 20,
    fps: int = 10,
    size: tuple[int, int] = (64, 48),
    gop: int = 12,
    index_first: bool = False,
) -> Path:
    """An MP4 of `frames` numbered frames at `fps`; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first else {}) as container:
        stream = container.add_stream("libx264", rate=fps, options={"g": str(gop), "crf": "20", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(numbered_frame(number, size[1], size[0]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_variable_rate_video(path: Path, times_s: list[float], size: tuple[int, int] = (64, 48)) -> Path:
    """An MP4 whose numbered frames stand at the given times in seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time_s in enumerate(times_s):
            picture = av.VideoFrame.from_ndarray(numbered_frame(number, size[1], size[0]), format="rgb24")
            picture.pts, picture.time_base = round(time_s * 1000), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def write_audio(path: Path, seconds: float = 1.0) -> Path:
    """An MP4 that holds a sound and no picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = 16000
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        tone = (0.1 * np.sin(np.arange(int(rate * seconds)) * 0.1)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(tone[None, :], format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_bad_files(folder: Path) -> dict[str, Path]:
    """One file of each kind that is no readable video, by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = write_video(folder / "whole.mp4").read_bytes()
    (folder / "whole.mp4").unlink()
    files = {kind: folder / f"{kind}.mp4" for kind in ("empty", "truncated", "text", "audio", "folder", "missing")}
    files["empty"].write_bytes(b"")
    files["truncated"].write_bytes(whole[: len(whole) // 2])
    files["text"].write_text("this is not a video\n" * 50)
    write_audio(files["audio"])
    files["folder"].mkdir(exist_ok=True)
    return files


def write_coded(
    path: Path,
    codec: str = "libx264",
    frames: int = 50,
    size: tuple[int, int] = (64, 48),
    fps: int = 25,
    options: dict[str, str] | None = None,
    mux_options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
    pixel_aspect: Fraction | None = None,
    rotation: int = 0,
    with_sound: bool = False,
) -> Path:
    """Numbered frames in any codec and container; the name's ending tells the container.

    `rotation` is by how many degrees a player is told to turn the pictures clockwise; `pixel_aspect` the
    width of a pixel over its height.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    quick = {"libx264": {"preset": "ultrafast"}, "libx265": {"preset": "ultrafast"}, "libsvtav1": {"preset": "12"}}
    with av.open(str(path), "w", options=mux_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=quick.get(codec, {}) | (options or {}))
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], pixel_format
        stream.thread_count = 1
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            stream.set_display_rotation(-rotation)
        sound = container.add_stream("aac", rate=16000, layout="mono") if with_sound else None
        if sound is not None:
            samples = np.zeros((1, 16000 * frames // fps), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate = 16000
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(numbered_frame(number, size[1], size[0]), format="rgb24")
            container.mux(stream.encode(picture))
            if sound is not None and number == 0:
                container.mux(sound.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            container.mux(sound.encode())
    return path


def remux(
    source: Path,
    path: Path,
    shift_s: float = 0.0,
    first_packet: int = 0,
    mux_options: dict[str, str] | None = None,
) -> Path:
    """The coded frames of `source` in another container, `shift_s` later, without the first packets.

    In an MP4 a shift to before 0 makes an edit list that hides the frames there, a later start one with a pause.
    """
    shown = {"avoid_negative_ts": "disabled"}
    with av.open(str(source)) as old, av.open(str(path), "w", options=shown | (mux_options or {})) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        shift = round(shift_s / stream.time_base)
        for number, packet in enumerate(old.demux(stream)):
            if packet.size and number >= first_packet:
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = copy
                new.mux(packet)
    return path
