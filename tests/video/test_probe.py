import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import RowError
from pipeline.video.file import LocalFile
from pipeline.video.probe import probe
from pipeline.video.video_info import shown_size
from tests.video.samples import numbered_frame, write_bad_files, write_coded


def code_of(path) -> str:
    with pytest.raises(RowError) as caught:
        probe(LocalFile(path))
    assert caught.value.stage == "decode"
    assert "\n" not in caught.value.message
    return caught.value.code


def test_the_facts_of_a_stream(tmp_path):
    stream = probe(LocalFile(write_coded(tmp_path / "a.mp4", size=(96, 64), with_sound=True)))
    assert (stream.info.width, stream.info.height, stream.info.codec) == (96, 64, "h264")
    assert stream.info.fps == pytest.approx(25)
    assert stream.info.duration_s == pytest.approx(2.0)
    assert (stream.coded_width, stream.coded_height, stream.pixel_format) == (96, 64, "yuv420p")
    assert (stream.rotation, stream.pixel_aspect) == (0, 1.0)


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_a_turned_video_is_described_as_shown(tmp_path, name, degrees):
    stream = probe(LocalFile(write_coded(tmp_path / name, size=(96, 64), rotation=degrees)))
    assert stream.rotation == degrees
    assert (stream.coded_width, stream.coded_height) == (96, 64)
    assert (stream.info.width, stream.info.height) == ((96, 64) if degrees == 180 else (64, 96))


@pytest.mark.parametrize(
    ("aspect", "shown"), [(Fraction(4, 3), (128, 64)), (Fraction(1, 2), (96, 128)), (Fraction(100), (96, 64))]
)
def test_pixels_that_are_not_square(tmp_path, aspect, shown):
    stream = probe(LocalFile(write_coded(tmp_path / "a.mp4", size=(96, 64), pixel_aspect=aspect)))
    assert (stream.info.width, stream.info.height) == shown


def test_wide_pixels_are_tall_after_a_quarter_turn():
    assert shown_size(96, 64, 90, 1.5) == (64, 144)
    assert shown_size(96, 64, 270, 0.5) == (128, 96)


def test_a_folder_and_a_file_that_is_not_there(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    assert code_of(tmp_path / "folder.mp4") == "not_a_video"
    with pytest.raises(OSError, match="No such file"):
        LocalFile(tmp_path / "missing.mp4")


@pytest.mark.parametrize(
    ("kind", "code"),
    [("empty", "empty_file"), ("truncated", "truncated"), ("text", "not_a_video"), ("audio", "no_video_stream")],
)
def test_what_is_no_video_says_what_it_is(tmp_path, kind, code):
    assert code_of(write_bad_files(tmp_path)[kind]) == code


def test_the_cover_of_a_song_is_no_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=25, options={"strict": "unofficial"})
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered_frame(1), format="rgb24")))
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    assert code_of(path) == "no_video_stream"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{other}\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile {other}\n"),
    ],
)
def test_a_list_of_other_files_is_no_video(tmp_path, name, text):
    write_coded(tmp_path / "other.ts")
    (tmp_path / name).write_text(text.format(other="other.ts"))
    assert code_of(tmp_path / name) == "not_a_video"


def resized_header(path: Path, side: int) -> Path:
    """A motion JPEG file of one frame whose headers speak of `side` x `side` pixels."""
    data = bytearray(write_coded(path, "mjpeg", pixel_format="yuvj420p", frames=1).read_bytes())
    frame, stream = data.index(b"\xff\xc0") + 5, data.index(b"strf") + 12
    data[frame : frame + 4] = struct.pack(">HH", side, side)
    data[stream : stream + 8] = struct.pack("<II", side, side)
    path.write_bytes(data)
    return path


def test_frames_larger_than_any_screen_are_refused(tmp_path):
    assert code_of(resized_header(tmp_path / "a.avi", 16000)) == "frame_too_large"
    assert probe(LocalFile(resized_header(tmp_path / "b.avi", 8192))).coded_width == 8192


def test_frames_so_large_that_ffmpeg_forgets_their_size(tmp_path):
    assert code_of(resized_header(tmp_path / "a.avi", 17000)) == "decode_failed"


def test_a_title_in_another_alphabet_is_no_obstacle(tmp_path):
    data = write_coded(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(data.replace(b"VideoHandler", b"Vid\xe9oHandler"))
    assert probe(LocalFile(tmp_path / "b.mp4")).info.width == 64
