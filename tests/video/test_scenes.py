from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.tiny.clips import write_video as write_clip
from pipeline.tiny.world import make_clip
from pipeline.video import scenes
from pipeline.video.frame_table import FrameTable
from pipeline.video.policies import choose_frames
from pipeline.video.sampling import Sampling
from pipeline.video.scenes import find_scenes

FPS = 10
COLOURS = [(200, 60, 50), (40, 90, 190), (60, 160, 70), (190, 180, 60), (120, 60, 150), (230, 230, 230)]


def moving_picture(scene: int, number: int) -> np.ndarray:
    """A textured ground of the scene's colour on which a white square wanders, [72, 96, 3]."""
    y, x = np.mgrid[0:72, 0:96]
    shade = 18 * np.sin(x / (3 + scene) + scene) * np.cos(y / 5)
    picture = np.clip(np.array(COLOURS[scene % len(COLOURS)]) + shade[:, :, None], 0, 255).astype(np.uint8)
    left = 5 + 2 * number % 70
    picture[20:34, left : left + 14] = 250
    return picture


def write_cuts(path: Path, lengths: list[int], gop: int, codec: str = "libx264", cut_keyframes: bool = False) -> Path:
    """A video of one scene for each length in frames; cuts get keyframes of their own or, by default, none."""
    options = {"g": str(gop), "preset": "veryfast", "sc_threshold": "0", "forced-idr": "1"}
    if codec == "libx265":
        options = {"x265-params": f"keyint={gop}:scenecut=0:log-level=none", "preset": "ultrafast"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        for scene, length in enumerate(lengths):
            for number in range(length):
                picture = av.VideoFrame.from_ndarray(moving_picture(scene, number), format="rgb24")
                if cut_keyframes and number == 0:
                    picture.pict_type = av.video.frame.PictureType.I
                container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


class Video:
    """The table of a file and its small pictures, remembering which of them were asked for."""

    def __init__(self, path: Path) -> None:
        with av.open(str(path)) as container:
            packets = [p for p in container.demux(container.streams.video[0]) if p.size]
            time_base = container.streams.video[0].time_base
        pts = np.array([p.pts for p in packets], np.int64)
        rank = np.argsort(pts)
        self.table = FrameTable(
            pts[rank],
            time_base,
            int(pts.min()),
            int(pts.max() + packets[0].duration),
            np.array([p.is_keyframe for p in packets])[rank],
            rank,
            size=np.array([p.size for p in packets], np.int64)[rank],
        )
        with av.open(str(path)) as container:
            frames = container.decode(container.streams.video[0])
            self.pictures = [f.to_ndarray(width=32, height=32, format="rgb24", interpolation="AREA") for f in frames]
        self.asked: list[int] = []

    def read(self, indices: np.ndarray):
        assert not self.asked, "read twice"
        self.asked = indices.tolist()
        return (self.pictures[i] for i in indices)

    def scenes_of(self, frames: int, **range_s: float) -> list[float]:
        self.asked = []
        return find_scenes(self.table, Sampling(frames, "scene", **range_s), self.read)


def test_cuts_that_got_keyframes_are_found_to_the_frame_from_keyframes_alone(tmp_path):
    video = Video(write_cuts(tmp_path / "cuts.mp4", [23, 40, 17, 35, 25], gop=20, cut_keyframes=True))
    assert video.scenes_of(frames=4) == [0.0, 2.3, 6.3, 8.0, 11.5]
    assert video.table.is_key[video.asked].all()


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_cuts_between_keyframes_are_found_from_packet_sizes(tmp_path, codec):
    video = Video(write_cuts(tmp_path / "cuts.mp4", [33, 51, 26, 30], gop=12, codec=codec))
    found = video.scenes_of(frames=4)
    assert video.table.is_key[video.asked].all()
    # A large packet is the first of a scene in the decoder's order: up to three frames are shown before it.
    assert np.allclose(found, [0.0, 3.3, 8.4, 11.0], atol=0.31)
    assert len(found) == 4


def test_where_keyframes_are_few_cuts_are_found_between_them(tmp_path):
    video = Video(write_cuts(tmp_path / "cuts.mp4", [31, 22, 47], gop=250))
    assert video.table.is_key.sum() == 1
    found = video.scenes_of(frames=16)
    assert np.allclose(found, [0.0, 3.1, 5.3], atol=scenes.STEP_S)
    assert len(found) == 3
    assert len(video.asked) < 30  # two a second of ten seconds


def test_a_video_without_cuts_is_one_scene(tmp_path):
    video = Video(write_cuts(tmp_path / "one.mp4", [120], gop=12))
    assert video.scenes_of(frames=16) == [0.0]
    assert video.scenes_of(frames=4) == [0.0]
    assert len(video.asked) == 10


def test_a_change_of_light_is_no_cut():
    pictures = [(moving_picture(0, n).astype(int) * 3 // 4 + n // 2).astype(np.uint8) for n in range(60)]
    table = FrameTable(np.arange(60), Fraction(1, FPS), 0, 60, np.ones(60, bool), np.arange(60))
    assert find_scenes(table, Sampling(8, "scene"), lambda indices: (pictures[i] for i in indices)) == [0.0]


def test_a_cut_between_scenes_of_the_same_colours_is_found():
    one = moving_picture(0, 0)
    pictures = [one] * 30 + [one[:, ::-1]] * 30
    one[:, :48] //= 2
    table = FrameTable(np.arange(60), Fraction(1, FPS), 0, 60, np.arange(60) % 5 == 0, np.arange(60))
    assert find_scenes(table, Sampling(8, "scene"), lambda indices: (pictures[i] for i in indices)) == [0.0, 3.0]


def test_a_range_sees_its_own_scenes_and_begins_with_its_first_frame(tmp_path):
    video = Video(write_cuts(tmp_path / "cuts.mp4", [23, 40, 17, 35, 25], gop=20, cut_keyframes=True))
    assert video.scenes_of(frames=2, start_s=3.05, end_s=9.0) == [3.0, 6.3, 8.0]
    # What is looked at begins with the keyframe before the range, at 2.0 s.
    assert video.scenes_of(frames=1, start_s=2.1, end_s=4.5) == [2.1, 2.3]
    assert video.asked == [20, 23, 43]
    assert video.scenes_of(frames=1, start_s=4.0, end_s=6.0) == [4.0]
    assert video.scenes_of(frames=16, start_s=2.4, end_s=6.2) == [2.4]
    assert video.scenes_of(frames=16, start_s=14.0) == []
    assert video.asked == []


def test_one_frame_or_one_keyframe_needs_no_look(tmp_path):
    video = Video(write_cuts(tmp_path / "cuts.mp4", [10], gop=20))
    assert video.scenes_of(frames=8, start_s=0.3, end_s=0.35) == [0.3]
    assert video.asked == []


def test_the_number_of_pictures_is_bounded(monkeypatch):
    n = 40_000
    flat = np.zeros((8, 8, 3), np.uint8)
    asked: list[int] = []

    def read(indices: np.ndarray):
        asked.extend(indices.tolist())
        return (flat for _ in indices)

    def count(keys: np.ndarray, frames: int) -> int:
        asked.clear()
        table = FrameTable(np.arange(n), Fraction(1, 30), 0, n, keys, np.arange(n))
        assert find_scenes(table, Sampling(frames, "scene"), read) == [0.0]
        assert keys[asked].all()
        return len(asked)

    assert count(np.arange(n) % 30 == 0, frames=32) == scenes.MOST_PICTURES
    # A long video of few keyframes is not decoded whole for this.
    assert count(np.arange(n) % 4000 == 0, frames=64) == 10
    assert count(np.zeros(n, bool), frames=64) == 0


def test_pictures_of_any_shape_can_be_compared():
    rng = np.random.default_rng(0)
    table = FrameTable(np.arange(4), Fraction(1, 1), 0, 4, np.ones(4, bool), np.arange(4))
    for height, width in [(4, 4), (5, 7), (32, 18), (90, 160)]:
        dark, bright = rng.integers(0, 90, (height, width, 3)), rng.integers(160, 255, (height, width, 3))
        pictures = [picture.astype(np.uint8) for picture in (dark, dark, bright, bright)]
        assert find_scenes(table, Sampling(2, "scene"), lambda indices, p=pictures: (p[i] for i in indices)) == [
            0.0,
            2.0,
        ]


def test_what_reading_raises_passes_through(tmp_path):
    video = Video(write_cuts(tmp_path / "cuts.mp4", [30], gop=5))

    def read(indices: np.ndarray):
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        find_scenes(video.table, Sampling(2, "scene"), read)


@pytest.mark.parametrize("seed", [1_000_001, 1_000_011, 1_000_024])
def test_every_scene_of_the_built_in_world_is_found_and_shown(tmp_path, seed):
    clip = make_clip(seed)
    write_clip(clip, tmp_path / "clip.mp4")
    video = Video(tmp_path / "clip.mp4")
    # A scene is cut half-way between two of the clip's slots, which are spread from the first frame to the last.
    begins = np.cumsum([0, *(scene.slots for scene in clip.scenes[:-1])]) - 0.5
    slots = np.arange(len(video.table)) * (clip.slots - 1) / (len(video.table) - 1)
    true = [int(np.argmax(slots >= begin)) for begin in begins]
    found = video.scenes_of(frames=16)
    assert np.allclose(found, video.table.times_s[true, 0], atol=0.2)
    picks = choose_frames(video.table, Sampling(16, "scene"), found)
    assert len(picks) == 16
    assert set(np.searchsorted(true, picks, side="right")) == set(range(1, len(true) + 1))
