import subprocess
import sys

import av
import numpy as np
import pytest

from pipeline.errors import RowError
from pipeline.frame_size import FixedSize, TokenBudget
from pipeline.resize import fit_frame
from pipeline.video import decode_decord, decode_pyav
from pipeline.video.decode import decode_frames
from pipeline.video.file import LocalFile
from pipeline.video.sampling import Sampling
from tests.video.samples import read_number, remux, write_bad_files, write_coded, write_variable_rate_video, write_video


def uniform(frames: int, **kwargs) -> Sampling:
    return Sampling(frames, "uniform", **kwargs)


def numbers(decoded) -> list[int]:
    return [read_number(frame) for frame in decoded.frames]


def test_decodes_the_uniform_frames_exactly(tmp_path):
    decoded = decode_frames(write_video(tmp_path / "a.mp4", frames=100, fps=10, gop=25), uniform(5))
    assert numbers(decoded) == [0, 25, 50, 74, 99]
    assert decoded.frame_times_s == pytest.approx([0.0, 2.5, 5.0, 7.4, 9.9])
    assert decoded.frames.shape == (5, 48, 64, 3)
    assert decoded.frames.dtype == np.uint8


def test_the_default_takes_keyframes_that_are_near_and_says_their_times(tmp_path):
    decoded = decode_frames(write_video(tmp_path / "a.mp4", frames=100, fps=10, gop=12), Sampling(4))
    assert numbers(decoded) == [0, 36, 60, 96]
    assert decoded.frame_times_s == pytest.approx([0.0, 3.6, 6.0, 9.6])


def test_a_number_of_frames_a_second_can_be_asked_for(tmp_path):
    decoded = decode_frames(write_video(tmp_path / "a.mp4", frames=40, fps=10), Sampling(64, "fps", fps=2.0))
    assert numbers(decoded) == [0, 5, 10, 15, 20, 25, 30, 35]


def test_scenes_are_found_and_each_is_shown(tmp_path):
    path = tmp_path / "scenes.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for colour, frames in (((200, 0, 0), 40), ((0, 200, 0), 10), ((0, 0, 200), 50)):
            picture = np.broadcast_to(np.array(colour, np.uint8), (48, 64, 3)).copy()
            for _ in range(frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    decoded = decode_frames(path, Sampling(3, "scene"))
    assert decoded.frames.mean(axis=(1, 2)).argmax(axis=1).tolist() == [0, 1, 2]


def test_colours_are_rgb(tmp_path):
    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        red = np.zeros((64, 64, 3), np.uint8)
        red[..., 0] = 200
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")))
        container.mux(stream.encode())
    pixel = decode_frames(path, uniform(1)).frames[0].mean(axis=(0, 1))
    assert pixel[0] > 150
    assert pixel[1] < 50
    assert pixel[2] < 50


def test_fewer_frames_than_asked_gives_all(tmp_path):
    assert numbers(decode_frames(write_video(tmp_path / "short.mp4", frames=3), uniform(16))) == [0, 1, 2]


def test_a_video_of_one_frame_works(tmp_path):
    decoded = decode_frames(write_video(tmp_path / "one.mp4", frames=1), uniform(16))
    assert numbers(decoded) == [0]
    assert decoded.frame_times_s == [0.0]


def test_a_range_takes_its_frames_only(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=100, fps=10)
    assert numbers(decode_frames(path, uniform(3, start_s=2.0, end_s=4.0))) == [20, 30, 39]


def test_times_come_from_timestamps_where_the_rate_varies(tmp_path):
    times = [0.0, 0.1, 0.2, 1.0, 1.1, 3.0, 3.05, 4.0]
    path = write_variable_rate_video(tmp_path / "v.mp4", times)
    decoded = decode_frames(path, uniform(8, start_s=1.05, end_s=3.01))
    assert decoded.frame_times_s == pytest.approx([1.0, 1.1, 3.0])
    assert numbers(decoded) == [3, 4, 5]


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
        decode_frames(write_bad_files(tmp_path)[kind], uniform(4))
    assert (caught.value.stage, caught.value.code) == ("decode", code)


@pytest.mark.parametrize("policy", ["uniform", "keyframe", "scene"])
def test_a_file_that_ends_before_its_frames_is_truncated(tmp_path, policy):
    whole = write_video(tmp_path / "whole.mp4", frames=60, index_first=True).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(RowError) as caught:
        decode_frames(cut, Sampling(8, policy))
    assert caught.value.code == "truncated"


@pytest.mark.parametrize("backend", ["auto", "decord", "pyav"])
def test_damage_inside_the_frames_is_an_error_of_one_plain_line(tmp_path, backend):
    data = bytearray(write_video(tmp_path / "whole.mp4", frames=60, index_first=True).read_bytes())
    data[len(data) // 2 : -100] = bytes(len(data) - 100 - len(data) // 2)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    with pytest.raises(RowError) as caught:
        decode_frames(damaged, uniform(60), backend=backend)
    assert caught.value.code == "decode_failed"
    assert "\n" not in caught.value.message
    assert ".cc:" not in caught.value.message


def test_a_range_without_frames_says_so(tmp_path):
    with pytest.raises(RowError) as caught:
        decode_frames(write_video(tmp_path / "a.mp4", frames=10, fps=10), uniform(4, start_s=60, end_s=70))
    assert caught.value.code == "no_frames"
    assert "60 s to 70 s" in caught.value.message


@pytest.mark.parametrize("backend", ["decord", "pyav"])
@pytest.mark.parametrize("size", [FixedSize(30, 40), TokenBudget(28, 28 * 28, 28 * 28 * 4)])
def test_frames_come_at_the_size_asked_for_scaled_as_the_engine_does(tmp_path, backend, size):
    path = write_video(tmp_path / "a.mp4")
    whole = decode_frames(path, uniform(4), backend=backend)
    sized = decode_frames(path, uniform(4), size, backend=backend)
    assert np.array_equal(sized.frames, np.stack([fit_frame(frame, *size.of(48, 64)) for frame in whole.frames]))
    assert sized.info == whole.info


def test_a_stream_whose_size_changes_keeps_the_size_that_it_began_with(tmp_path):
    small = write_coded(tmp_path / "small.ts", frames=10)
    large = remux(write_coded(tmp_path / "large.ts", frames=10, size=(96, 64)), tmp_path / "later.ts", shift_s=0.4)
    path = tmp_path / "both.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    decoded = decode_frames(path, uniform(20))
    assert decoded.frames.shape == (20, 48, 64, 3)
    assert numbers(decoded) == [*range(10), *range(10)]


def test_a_picture_too_narrow_for_the_model_is_an_error_of_the_request(tmp_path):
    path = write_coded(tmp_path / "a.mp4", frames=2, size=(1024, 4))
    with pytest.raises(RowError) as caught:
        decode_frames(path, uniform(2), TokenBudget(28, 28 * 28, 28 * 28 * 4))
    assert (caught.value.stage, caught.value.code) == ("generate", "invalid_request")


def test_frames_are_decoded_into_the_memory_that_the_caller_gives(tmp_path):
    given = np.zeros(5 * 48 * 64 * 3 + 7, np.uint8)
    decoded = decode_frames(
        write_video(tmp_path / "a.mp4"), uniform(5), allocate=lambda shape: given[7:].reshape(shape)
    )
    assert np.shares_memory(decoded.frames, given)
    assert numbers(decoded) == [0, 5, 10, 14, 19]


@pytest.mark.parametrize("policy", ["uniform", "scene"])
def test_the_bytes_are_announced_and_decoding_waits_for_the_permission(tmp_path, policy):
    events = []

    class Watched(LocalFile):
        def will_read(self, ranges):
            events.append("bytes")
            assert ranges

    file = Watched(write_video(tmp_path / "a.mp4"))
    decode_frames(
        file,
        Sampling(5, policy),
        on_planned=lambda info: events.append(info.duration_s),
        on_decoder=lambda decoder: events.append(decoder),
    )
    assert events == (["bytes", 2.0, "pyav"] if policy == "uniform" else [2.0, "bytes", "bytes", "pyav"])


def tried(monkeypatch, path, sampling, failing=(), **kwargs) -> list[str]:
    """The decoders that are tried when those of `failing` fail."""
    order: list[str] = []
    for name, module in (("pyav", decode_pyav), ("decord", decode_decord)):
        if name in failing:

            def fail(*args, name=name):
                raise RowError("decode", "decode_failed", f"{name} failed")

            monkeypatch.setattr(module, "read_frames", fail)
    decode_frames(path, sampling, on_decoder=order.append, **kwargs)
    return order


def test_decord_gives_a_second_opinion_where_pyav_fails(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4")
    assert tried(monkeypatch, path, uniform(5)) == ["pyav"]
    assert tried(monkeypatch, path, uniform(5), failing=["pyav"]) == ["pyav", "decord"]


def test_decord_is_not_asked_about_what_it_cannot_read(tmp_path, monkeypatch):
    av1 = write_coded(tmp_path / "av1.mp4", "libsvtav1", frames=10, options={"svtav1-params": "lp=1"})
    with pytest.raises(RowError, match="pyav failed"):
        tried(monkeypatch, av1, uniform(5), failing=["pyav"])


def test_a_decoder_that_was_named_is_the_only_one_tried_and_pyav_has_the_last_word(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4")
    with pytest.raises(RowError, match="pyav failed"):
        tried(monkeypatch, path, uniform(5), failing=["pyav"], backend="pyav")
    assert tried(monkeypatch, path, uniform(5), backend="decord") == ["decord"]
    with pytest.raises(RowError, match="pyav failed"):
        tried(monkeypatch, path, uniform(5), failing=["decord", "pyav"])


def test_the_decoder_that_did_it_is_named(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    assert decode_frames(path, uniform(5), backend="decord").backend == "decord"
    assert decode_frames(path, uniform(5), backend="pyav").backend == "pyav"


def test_bytes_that_cannot_be_fetched_are_no_reason_to_try_another_decoder(tmp_path, monkeypatch):
    def lost(*args):
        raise RowError("fetch", "fetch_failed", "the bytes cannot be fetched")

    monkeypatch.setattr(decode_pyav, "read_frames", lost)
    order = []
    with pytest.raises(RowError) as caught:
        decode_frames(write_video(tmp_path / "a.mp4"), uniform(5), on_decoder=order.append)
    assert (caught.value.code, order) == ("fetch_failed", ["pyav"])


def test_bad_files_print_nothing(tmp_path):
    write_bad_files(tmp_path)
    program = (
        "import sys; from pathlib import Path\n"
        "from pipeline.video.decode import decode_frames; from pipeline.video.sampling import Sampling\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    for backend in ('decord', 'pyav'):\n"
        "        try: decode_frames(path, Sampling(4, 'uniform'), backend=backend)\n"
        "        except Exception: pass\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_importing_loads_no_decoder_no_model_and_no_cluster():
    program = (
        "import sys, pipeline.video, pipeline.video.decode\n"
        "print(sorted({'av', 'decord', 'torch', 'ray', 'transformers', 'pruning'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (run.stdout.strip(), run.stderr) == ("[]", "")
