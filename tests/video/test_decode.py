import subprocess
import sys

import numpy as np
import pytest

from pipeline.errors import RowError
from pipeline.video import decode_frames, probe
from tests.video.samples import read_number, write_bad_files, write_variable_rate_video, write_video


def numbers(decoded) -> list[int]:
    return [read_number(frame) for frame in decoded.frames]


def test_decodes_the_uniform_frames_exactly(tmp_path):
    decoded = decode_frames(write_video(tmp_path / "a.mp4", frames=100, fps=10, gop=25), 5)
    assert numbers(decoded) == [0, 25, 50, 74, 99]
    assert decoded.frame_times_s == pytest.approx([0.0, 2.5, 5.0, 7.4, 9.9])
    assert decoded.frames.shape == (5, 48, 64, 3)
    assert decoded.frames.dtype == np.uint8
    assert decoded.backend == "decord"


def test_colours_are_rgb(tmp_path):
    import av

    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        red = np.zeros((64, 64, 3), np.uint8)
        red[..., 0] = 200
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        container.mux(stream.encode())
    pixel = decode_frames(path, 1).frames[0].mean(axis=(0, 1))
    assert pixel[0] > 150
    assert pixel[1] < 50
    assert pixel[2] < 50


def test_fewer_frames_than_asked_gives_all(tmp_path):
    decoded = decode_frames(write_video(tmp_path / "short.mp4", frames=3), 16)
    assert numbers(decoded) == [0, 1, 2]


def test_a_video_of_one_frame_works(tmp_path):
    decoded = decode_frames(write_video(tmp_path / "one.mp4", frames=1), 16)
    assert numbers(decoded) == [0]
    assert decoded.frame_times_s == [0.0]


def test_a_range_takes_its_frames_only(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=100, fps=10)
    assert numbers(decode_frames(path, 3, start_s=2.0, end_s=4.0)) == [20, 30, 39]


def test_times_come_from_timestamps_where_the_rate_varies(tmp_path):
    times = [0.0, 0.1, 0.2, 1.0, 1.1, 3.0, 3.05, 4.0]
    decoded = decode_frames(write_variable_rate_video(tmp_path / "v.mp4", times), 8, start_s=1.05, end_s=3.01)
    assert decoded.frame_times_s == pytest.approx([1.0, 1.1, 3.0])
    assert numbers(decoded) == [3, 4, 5]


def test_probe_describes_the_stream(tmp_path):
    info = probe(write_video(tmp_path / "a.mp4", frames=20, fps=10, size=(96, 64)))
    assert (info.width, info.height, info.codec) == (96, 64, "h264")
    assert info.fps == pytest.approx(10)
    assert info.duration_s == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("empty", "empty_file"),
        ("truncated", "truncated"),
        ("text", "not_a_video"),
        ("audio", "no_video_stream"),
        ("folder", "not_a_video"),
        ("missing", "not_a_video"),
    ],
)
def test_what_is_no_video_says_what_it_is(tmp_path, kind, code):
    with pytest.raises(RowError) as caught:
        decode_frames(write_bad_files(tmp_path)[kind], 4)
    assert (caught.value.stage, caught.value.code) == ("decode", code)


def test_a_file_that_ends_before_its_frames_is_truncated(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", frames=60, index_first=True).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(RowError) as caught:
        decode_frames(cut, 8)
    assert caught.value.code == "truncated"


def test_damage_inside_the_frames_is_an_error_of_one_plain_line(tmp_path):
    data = bytearray(write_video(tmp_path / "whole.mp4", frames=60, index_first=True).read_bytes())
    data[len(data) // 2 : -100] = bytes(len(data) - 100 - len(data) // 2)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    with pytest.raises(RowError) as caught:
        decode_frames(damaged, 60)
    assert caught.value.code == "decode_failed"
    assert "\n" not in caught.value.message
    assert ".cc:" not in caught.value.message


def test_a_range_without_frames_says_so(tmp_path):
    with pytest.raises(RowError) as caught:
        decode_frames(write_video(tmp_path / "a.mp4", frames=10, fps=10), 4, start_s=60, end_s=70)
    assert caught.value.code == "no_frames"
    assert "60 s to 70 s" in caught.value.message


def test_bad_files_print_nothing(tmp_path):
    write_bad_files(tmp_path)
    program = (
        "import sys; from pathlib import Path; from pipeline.video import decode_frames\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try: decode_frames(path, 4)\n"
        "    except Exception: pass\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_reading_video_loads_neither_model_nor_cluster():
    program = (
        "import sys, pipeline.video; print(sorted({'torch', 'ray', 'transformers', 'pruning'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]"
