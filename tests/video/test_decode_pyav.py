from contextlib import ExitStack
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import RowError
from pipeline.video import decode_pyav
from pipeline.video.container import open_video
from pipeline.video.decode_pyav import can_skip, read_frames, read_thumbnails
from pipeline.video.file import LocalFile
from pipeline.video.frame_table import FrameTable
from pipeline.video.packet_scan import frame_table_of
from pipeline.video.packet_walk import PacketWalk
from tests.video.samples import numbered_frame, read_number, remux, write_coded, write_variable_rate_video

REORDERED = {"g": "12", "bf": "3", "b_strategy": "0"}
X265 = "keyint=12:bframes=3:log-level=0:pools=none:frame-threads=1"


def reordered(path: Path, **kwargs) -> Path:
    return write_coded(path, options=REORDERED, **kwargs)


def hevc(path: Path, more: str = "", **kwargs) -> Path:
    return write_coded(path, "libx265", options={"x265-params": X265 + more}, **kwargs)


def changing_size(path: Path) -> Path:
    """Ten frames of 64 x 48, then ten of 96 x 64, in one transport stream."""
    small = write_coded(path.with_name("small.ts"), frames=10)
    large = write_coded(path.with_name("large.ts"), frames=10, size=(96, 64))
    later = remux(large, path.with_name("later.ts"), shift_s=0.4)
    path.write_bytes(small.read_bytes() + later.read_bytes())
    return path


KINDS = {
    "h264": lambda p: reordered(p / "a.mp4"),
    "h264 with an open GOP": lambda p: write_coded(p / "a.mp4", options=REORDERED | {"x264-params": "open-gop=1"}),
    "h264 of tiny GOPs": lambda p: write_coded(p / "a.mp4", options=REORDERED | {"g": "4"}),
    "h264 of keyframes only": lambda p: write_coded(p / "a.mp4", options={"g": "1"}),
    "h264 that is refreshed gradually": lambda p: write_coded(
        p / "a.mp4", options={"x264-params": "intra-refresh=1:keyint=12"}
    ),
    "h264 without colour detail lost": lambda p: reordered(p / "a.mp4", pixel_format="yuv444p"),
    "h264 of 10 bits": lambda p: reordered(p / "a.mp4", pixel_format="yuv420p10le"),
    "h264 interlaced": lambda p: write_coded(p / "a.mp4", options=REORDERED | {"flags": "+ilme+ildct"}),
    "h264 behind an edit list": lambda p: remux(reordered(p / "a.mp4"), p / "b.mp4", shift_s=-0.7),
    "h264 that starts late": lambda p: remux(reordered(p / "a.mp4"), p / "b.mp4", shift_s=1.5),
    "h264 in fragments": lambda p: reordered(p / "a.mp4", mux_options={"movflags": "frag_keyframe+empty_moov"}),
    "h264 in a transport stream": lambda p: reordered(p / "a.ts"),
    "h264 in Matroska": lambda p: reordered(p / "a.mkv"),
    "h264 in Flash": lambda p: reordered(p / "a.flv"),
    "h264 in AVI": lambda p: reordered(p / "a.avi"),
    "h264 at a variable rate": lambda p: write_variable_rate_video(p / "a.mp4", [0, 0.1, 0.2, 1.0, 1.1, 3.0, 4.0]),
    "h264 of changing size": lambda p: changing_size(p / "a.ts"),
    "hevc": lambda p: hevc(p / "a.mp4"),
    "hevc with an open GOP": lambda p: hevc(p / "a.mp4", ":open-gop=1"),
    "hevc of two temporal layers": lambda p: hevc(p / "a.mp4", ":temporal-layers=2"),
    "av1": lambda p: write_coded(p / "a.mp4", "libsvtav1", options={"g": "12", "svtav1-params": "lp=1"}),
    "vp9": lambda p: write_coded(
        p / "a.webm", "libvpx-vp9", options={"g": "12", "deadline": "realtime", "cpu-used": "8"}
    ),
    "mpeg4 in AVI": lambda p: write_coded(p / "a.avi", "mpeg4", options={"g": "12", "bf": "2"}),
    "mpeg2 in a program stream": lambda p: write_coded(p / "a.mpg", "mpeg2video", options={"g": "12", "bf": "2"}),
    "odd sizes": lambda p: write_coded(p / "a.webm", "libvpx-vp9", size=(61, 45), frames=20),
    "one frame": lambda p: write_coded(p / "a.mp4", frames=1),
}


def in_sequence(path: Path) -> dict[int, np.ndarray]:
    with av.open(str(path)) as container:
        frames = [(frame.pts, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        codec = container.streams.video[0].codec_context.codec.canonical_name
    if (path.suffix, codec) == (".avi", "h264"):  # FFmpeg numbers these as they are decoded, not as they are shown
        return dict(enumerate(picture for _, picture in frames))
    return dict(frames)


def read(path: Path, choose) -> tuple[FrameTable, dict[int, np.ndarray]]:
    with open_video(LocalFile(path)) as video:
        table = frame_table_of(video)
        return table, dict(read_frames(video, table, choose(table), 0))


@pytest.fixture(scope="module", params=KINDS)
def clip(request, tmp_path_factory) -> Path:
    return KINDS[request.param](tmp_path_factory.mktemp("clips"))


@pytest.mark.parametrize(
    "choose",
    [
        lambda table: np.arange(len(table)),
        lambda table: np.flatnonzero(table.is_key),
        lambda table: np.arange(len(table))[::-7][::-1],
        lambda table: np.array([len(table) // 2]),
    ],
    ids=["all", "keyframes", "some", "one"],
)
def test_any_choice_of_frames_has_the_pixels_of_a_sequential_decode(clip, choose):
    whole = in_sequence(clip)
    table, frames = read(clip, choose)
    assert sorted(frames) == choose(table).tolist()
    for index, frame in frames.items():
        assert np.array_equal(frame, whole[int(table.pts[index])]), index


def test_frames_follow_one_another_as_they_are_shown(tmp_path):
    _, frames = read(reordered(tmp_path / "a.mp4", frames=30), lambda table: np.arange(len(table)))
    assert [read_number(frame) for frame in frames.values()] == list(range(30))


def test_a_raw_stream_that_says_no_times_is_read_in_its_order(tmp_path):
    path = write_coded(tmp_path / "a.h264", options={"g": "10", "bf": "0"}, frames=40)
    _, frames = read(path, lambda table: np.array([3, 17, 25]))
    assert [read_number(frame) for frame in frames.values()] == [3, 17, 25]


def test_a_file_object_is_read_as_a_path_is(tmp_path):
    path = reordered(tmp_path / "a.mp4")

    class Opened(LocalFile):
        def open(self):
            return self.path.open("rb")

    with open_video(Opened(path)) as video:
        frames = dict(read_frames(video, frame_table_of(video), [5, 30], 0))
    assert [read_number(frames[index]) for index in (5, 30)] == [5, 30]


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """The pts of every frame that comes out of a decoder."""
    seen: list[int] = []
    send = decode_pyav._send

    def watched(context, packet):
        frames = send(context, packet)
        seen.extend(frame.pts for frame in frames)
        return frames

    monkeypatch.setattr(decode_pyav, "_send", watched)
    return seen


def test_a_keyframe_is_decoded_alone(tmp_path, decoded):
    table, _ = read(reordered(tmp_path / "a.mp4"), lambda table: np.flatnonzero(table.is_key))
    assert decoded == table.pts[table.is_key].tolist()


def test_frames_that_nobody_refers_to_are_not_decoded(tmp_path, decoded):
    path = write_coded(tmp_path / "a.mp4", options=REORDERED | {"x264-params": "b-pyramid=0:scenecut=0"})
    _, frames = read(path, lambda table: np.array([10]))
    assert read_number(frames[10]) == 10
    assert len(decoded) <= 5  # the keyframe, three predicted ones, and frame 10 itself


def test_hevc_of_several_temporal_layers_is_decoded_whole(tmp_path):
    answers = []
    for more in ("", ":temporal-layers=2"):
        with open_video(LocalFile(hevc(tmp_path / f"{len(answers)}.mp4", more))) as video:
            answers.append(can_skip(video.stream.codec_context))
    assert answers == [True, False]


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.mkv"])
def test_packets_are_found_from_any_keyframe_in_any_order(tmp_path, name):
    with ExitStack() as held:
        video = held.enter_context(open_video(LocalFile(reordered(tmp_path / name))))
        table = frame_table_of(video)
        walk = held.enter_context(PacketWalk(video, table, {}))
        for start in table.decode_rank[table.is_key][[2, 0, 3, 1]].tolist():
            packets = walk.packets_from(start)
            assert [next(packets)[0] for _ in range(3)] == [start, start + 1, start + 2]


def test_damage_to_a_wanted_frame_is_an_error_and_damage_elsewhere_is_none(tmp_path):
    path = reordered(tmp_path / "a.mp4")
    table, _ = read(path, lambda table: np.array([0]))
    data = bytearray(path.read_bytes())
    key = int(np.flatnonzero(table.is_key)[1])
    begin, size = int(table.offset[key]), int(table.size[key])
    data[begin + 4 : begin + size] = bytes(size - 4)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    _, frames = read(damaged, lambda table: np.array([3, 40]))
    assert [read_number(frame) for frame in frames.values()] == [3, 40]
    with pytest.raises(RowError, match="missing or damaged") as caught:
        read(damaged, lambda table: np.array([key]))
    assert (caught.value.stage, caught.value.code) == ("decode", "decode_failed")


def test_thumbnails_come_in_order_at_their_size_and_show_the_frame(tmp_path):
    path = reordered(tmp_path / "a.mp4", size=(320, 240))
    with open_video(LocalFile(path)) as video:
        table = frame_table_of(video)
    pictures = list(read_thumbnails(LocalFile(path), table, [0, 12, 13, 40], 48, 64))
    assert [picture.shape for picture in pictures] == [(48, 64, 3)] * 4
    assert [read_number(picture) for picture in pictures] == [0, 12, 13, 40]
    assert np.abs(pictures[3].astype(int) - numbered_frame(40)).mean() < 25
