"""Frames come in the order in which they are shown, also from containers that do not say which that is."""

from pathlib import Path

import av
import pytest

from pipeline.video.decode import decode_frames
from pipeline.video.sampling import Sampling
from tests.video.samples import read_number, write_coded

ALL = Sampling(1000, "uniform")
REORDERED = {"preset": "veryfast", "bf": "3", "g": "12", "x264-params": "b-pyramid=normal:b-adapt=0:scenecut=0"}
USER_DATA = b"\x00\x00\x01\xb2DivX503b1393p"
B = 2  # the kind of a picture, in two bits behind its start code
PICTURE = b"\x00\x00\x01\xb6"
PLACEHOLDER = PICTURE + b"\x40\x00\x00"


def write_packed(path: Path, frames: int = 48) -> Path:
    """MPEG-4 in an AVI as DivX and Xvid pack it: the first of two B-frames in the packet before, the rest moved up."""
    plain = write_coded(path.with_name("plain.avi"), "mpeg4", frames, options={"bf": "2", "g": "12", "b_strategy": "0"})
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        packets = [bytes(packet) for packet in source.demux(video=0) if packet.size]
        kinds = [data[data.index(PICTURE) + 4] >> 6 for data in packets]
        packed = []
        for place, (data, kind) in enumerate(zip(packets, kinds, strict=True)):
            following = packets[place + 1] if kinds[place + 1 : place + 2] == [B] else b""
            # A B-frame itself lies in the packet before.
            packed.append((following or PLACEHOLDER) if kind == B else data + following)
        first = packed[0].index(PICTURE)
        packed[0] = packed[0][:first] + USER_DATA + packed[0][first:]
        for rank, data in enumerate(packed):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts = copy, rank, rank
            packet.time_base, packet.is_keyframe = source.streams.video[0].time_base, kinds[rank] == 0
            target.mux(packet)
    return path


def write_h264(path: Path) -> Path:
    return write_coded(path, "libx264", 48, options=REORDERED)


def write_hevc(path: Path) -> Path:
    params = "log-level=none:pools=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"
    return write_coded(path, "libx265", 48, options={"x265-params": params})


UNTIMED = {
    "packed.avi": write_packed,
    "packed.mp4": write_packed,  # copied as it was
    "h264.avi": write_h264,
    "bare.h264": write_h264,
    "bare.hevc": write_hevc,
}


@pytest.mark.parametrize("name", UNTIMED)
def test_reordered_frames_come_in_the_order_in_which_they_are_shown(tmp_path, name):
    video = decode_frames(UNTIMED[name](tmp_path / name), ALL)
    numbers = [read_number(frame) for frame in video.frames]
    assert numbers == list(range(48))


@pytest.mark.parametrize("name", UNTIMED)
def test_any_frame_of_such_a_file_is_the_one_of_a_plain_decode(tmp_path, name):
    path = UNTIMED[name](tmp_path / name)
    whole = decode_frames(path, ALL)
    shown = dict(zip(whole.frame_times_s, whole.frames, strict=True))
    for policy in ("keyframe", "uniform", "scene"):
        some = decode_frames(path, Sampling(5, policy, start_s=0.6, end_s=1.7))
        assert len(some.frames) == 5
        assert all((frame == shown[at]).all() for at, frame in zip(some.frame_times_s, some.frames, strict=True))


def test_the_first_frame_of_an_avi_is_at_the_begin(tmp_path):
    path = write_coded(tmp_path / "plain.avi", "libx264", 20, options={"bf": "0", "g": "6"})
    video = decode_frames(path, ALL)
    assert video.frame_times_s == pytest.approx([number / 25 for number in range(20)])
    assert [read_number(frame) for frame in video.frames] == list(range(20))


def test_a_clock_is_not_taken_for_a_frame_rate(tmp_path):
    path = write_coded(tmp_path / "bare.dv", "dvvideo", 10, size=(720, 576))
    assert decode_frames(path, Sampling(2)).info.fps == 25
