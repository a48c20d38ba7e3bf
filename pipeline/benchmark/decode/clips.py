"""The clips of the benchmark: a part is encoded once, and repeated without encoding up to the clip's length."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import av

from pipeline.benchmark.decode import pictures

FPS = 30


@dataclass(frozen=True)
class Recipe:
    """How a clip is made: `part` frames, every `gap`-th of them a keyframe, are encoded and then repeated.

    Groups are closed. ValueError unless the clip's length is a multiple of the part's.
    """

    codec: str  # as FFmpeg names it
    width: int
    height: int
    gap: int
    part: int
    duration_s: int
    encoder: str
    options: Mapping[str, str] = field(default_factory=dict)
    container: str = "mp4"

    def __post_init__(self) -> None:
        """Refuse a part that does not fill the clip."""
        if self.duration_s * FPS % self.part:
            raise ValueError(f"{self.duration_s} s are no multiple of {self.part} frames")

    @property
    def name(self) -> str:
        """Codec, height, keyframe gap and length, as in h264-720p-gap250-300s."""
        return f"{self.codec}-{self.height}p-gap{self.gap}-{self.duration_s}s"


_X264 = Recipe("h264", 1280, 720, 250, 500, 300, "libx264", {"preset": "veryfast", "bf": "3", "sc_threshold": "0"})
_X265 = Recipe("hevc", 1280, 720, 250, 250, 300, "libx265", {"preset": "superfast", "crf": "25"})
_SVT_AV1 = Recipe("av1", 1280, 720, 250, 250, 300, "libsvtav1", {"preset": "9", "crf": "40"})
_VP9 = Recipe(
    "vp9",
    1280,
    720,
    250,
    250,
    300,
    "libvpx-vp9",
    {"deadline": "good", "cpu-used": "5", "row-mt": "1", "crf": "36", "auto-alt-ref": "1", "lag-in-frames": "16"},
    container="webm",  # and so without an index of every frame
)
_1080P = {"width": 1920, "height": 1080}
_2160P = {"width": 3840, "height": 2160}

RECIPES: tuple[Recipe, ...] = (
    _X264,
    replace(_X264, duration_s=3600),
    replace(_X264, gap=30, part=300, duration_s=60),
    replace(_X264, **_1080P, duration_s=600),
    replace(_X264, **_1080P, gap=60, part=300),
    replace(_X264, **_1080P, part=300, duration_s=10),
    replace(_X264, **_2160P, part=250, duration_s=50, options={**_X264.options, "preset": "superfast"}),
    replace(_X264, **_2160P, gap=30, part=120, duration_s=60),
    _X265,
    replace(_X265, **_1080P, gap=60, part=180),
    replace(_X265, **_2160P, gap=30, part=60, duration_s=60),
    _SVT_AV1,
    replace(_SVT_AV1, **_1080P, gap=60, part=180),
    _VP9,
    replace(_VP9, **_1080P, gap=60, part=120),
)
"""Long and short keyframe gaps at 30 frames a second; a part takes at most about 20 s of two cores to encode."""

WARM_UP = Recipe("h264", 128, 96, 10, 30, 1, "libx264", {"preset": "ultrafast"})
"""What a system decodes before it is measured, so that loading its libraries is not."""


def make_clip(recipe: Recipe, folder: Path) -> Path:
    """The clip's file in `folder`, made unless it is there. Whole or absent, also when this process is killed."""
    clip = folder / f"{recipe.name}-{_digest(recipe)}.{recipe.container}"
    if not clip.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part, partial = (clip.with_name(f"{kind}-{clip.name}") for kind in ("part", "unfinished"))
        _encode(recipe, part)
        _repeat(part, partial, recipe)
        partial.replace(clip)
        part.unlink()
    return clip


def _digest(recipe: Recipe) -> str:
    """Changes with the recipe and with the pictures: a clip of another kind is never taken for this one."""
    drawn = Path(pictures.__file__).read_bytes()
    return hashlib.sha256(repr(recipe).encode() + drawn).hexdigest()[:8]


def _encode(recipe: Recipe, path: Path) -> None:
    gap = recipe.gap
    options = {"g": str(gap), "threads": "2", **recipe.options}
    if recipe.encoder == "libx264":
        options["keyint_min"] = str(gap)
    elif recipe.encoder == "libx265":
        options["x265-params"] = f"keyint={gap}:min-keyint={gap}:scenecut=0:open-gop=0:pools=2:log-level=none"
    elif recipe.encoder == "libsvtav1":
        os.environ["SVT_LOG"] = "1"  # errors only; it would print its settings
        options["svtav1-params"] = "lp=2:scd=0:irefresh-type=2"
    elif recipe.encoder == "libvpx-vp9":
        options["keyint_min"] = str(gap)
    with av.open(str(path), "w", format=recipe.container) as container:
        stream = container.add_stream(recipe.encoder, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = recipe.width, recipe.height, "yuv420p"
        for picture in pictures.draw_pictures(recipe.part, recipe.width, recipe.height):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        container.mux(stream.encode())


def _repeat(part: Path, path: Path, recipe: Recipe) -> None:
    """Write the packets of `part` again and again, each time later by its length."""
    with av.open(str(part)) as source, av.open(str(path), "w", format=recipe.container) as target:
        stream = target.add_stream_from_template(source.streams.video[0], opaque=True)
        # The end of a stream comes as a packet without bytes.
        packets = [(bytes(packet), packet) for packet in source.demux(video=0) if packet.size]
        for repetition in range(recipe.duration_s * FPS // recipe.part):
            for data, original in packets:
                later = round(Fraction(repetition * recipe.part, FPS) / original.time_base)
                packet = av.Packet(data)
                packet.pts, packet.dts = original.pts + later, original.dts + later
                packet.time_base = original.time_base
                packet.duration = round(1 / (FPS * original.time_base))  # AV1's encoder leaves the last one's out
                packet.is_keyframe = original.is_keyframe
                packet.stream = stream
                target.mux(packet)
