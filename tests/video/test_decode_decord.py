from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from pipeline.errors import RowError
from pipeline.video import decode_decord, decode_pyav
from pipeline.video.container import open_video
from pipeline.video.file import LocalFile
from pipeline.video.frame_table import FrameTable
from pipeline.video.packet_scan import frame_table_of, read_frame_table
from tests.video.samples import read_number, remux, write_coded


def colourful(number: int, height: int, width: int) -> np.ndarray:
    """Smooth waves in all colours that move from frame to frame."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17 + number / 3), np.sin(y / 11 - number / 5), np.sin((x + y) / 23 + number / 7)]
    return (127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)


def write_colours(path: Path, matrix: str, is_full_range: bool) -> Path:
    """An H.264 file that says which of the colour matrices and ranges it uses, and uses it."""
    range_name = "pc" if is_full_range else "tv"
    with av.open(str(path), "w") as container:
        options = {"crf": "10", "x264-params": f"colormatrix={matrix}:range={range_name}:keyint=5"}
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.codec_context.color_range = ColorRange.JPEG if is_full_range else ColorRange.MPEG
        stream.codec_context.colorspace = Colorspace.ITU709 if matrix == "bt709" else Colorspace.ITU601
        for number in range(12):
            picture = av.VideoFrame.from_ndarray(colourful(number, 96, 160), format="rgb24")
            coded = picture.reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709 if matrix == "bt709" else Colorspace.ITU601,
                dst_color_range=ColorRange.JPEG if is_full_range else ColorRange.MPEG,
            )
            container.mux(stream.encode(coded))
        container.mux(stream.encode())
    return path


def both(path: Path, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
    with open_video(LocalFile(path)) as video:
        table = frame_table_of(video)
        ours = dict(decode_pyav.read_frames(video, table, indices, 0))
    theirs = dict(decode_decord.read_frames(LocalFile(path), table, indices, 0))
    assert sorted(ours) == sorted(theirs) == indices
    return np.stack([ours[i] for i in indices]).astype(int), np.stack([theirs[i] for i in indices]).astype(int)


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m"])
@pytest.mark.parametrize("is_full_range", [False, True], ids=["limited", "full"])
def test_both_decoders_show_the_colours_that_were_coded(tmp_path, matrix, is_full_range):
    indices = [0, 3, 7, 11]
    ours, theirs = both(write_colours(tmp_path / "a.mp4", matrix, is_full_range), indices)
    assert np.abs(ours - theirs).max() <= 2
    true = np.stack([colourful(i, 96, 160) for i in indices]).astype(int)
    assert np.abs(ours - true).mean() < 4


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
def test_both_decoders_give_the_same_frames(tmp_path, name, codec):
    options = {
        "libx264": {"g": "12", "bf": "3"},
        "libx265": {"x265-params": "keyint=12:open-gop=0:log-level=0:pools=none:frame-threads=1"},
        "libvpx-vp9": {"g": "12", "deadline": "realtime", "cpu-used": "8"},
    }
    ours, theirs = both(write_coded(tmp_path / name, codec, options=options[codec]), [0, 1, 11, 12, 13, 30, 49])
    assert np.abs(ours - theirs).max() <= 2


def numbers(path: Path, table: FrameTable, indices: list[int]) -> list[int]:
    return [read_number(frame) for _, frame in decode_decord.read_frames(LocalFile(path), table, indices, 0)]


def test_many_frames_come_a_few_at_a_time_and_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(decode_decord, "_CHUNK_BYTES", 3 * 64 * 48 * 3)
    path = write_coded(tmp_path / "a.mp4", frames=20)
    assert numbers(path, read_frame_table(LocalFile(path)), list(range(1, 20, 2))) == list(range(1, 20, 2))


def refusal(path: Path, table: FrameTable) -> str:
    with pytest.raises(RowError) as caught:
        numbers(path, table, [3])
    assert (caught.value.stage, caught.value.code) == ("decode", "decode_failed")
    return caught.value.message


def test_a_file_in_which_decord_sees_other_frames_is_refused(tmp_path):
    cut = remux(write_coded(tmp_path / "a.mp4", options={"g": "12"}), tmp_path / "b.mp4", shift_s=-0.7)
    assert "frames where there are 32" in refusal(cut, read_frame_table(LocalFile(cut)))


def test_a_file_in_which_decord_sees_other_times_is_refused(tmp_path):
    path = write_coded(tmp_path / "a.mp4")
    table = read_frame_table(LocalFile(path))
    moved = table.pts.copy()
    moved[20:] += round(0.01 / table.time_base)
    assert "other times" in refusal(path, replace(table, pts=moved))
    assert numbers(path, table, [3]) == [3]


def test_a_transport_stream_is_refused_because_decord_confuses_its_frames(tmp_path):
    path = write_coded(tmp_path / "a.ts")
    assert "outside MP4 and Matroska" in refusal(path, read_frame_table(LocalFile(path)))


def test_open_gops_are_refused_because_decord_confuses_their_frames(tmp_path):
    options = {"g": "12", "bf": "3", "b_strategy": "0", "x264-params": "open-gop=1:scenecut=0"}
    path = write_coded(tmp_path / "a.mp4", options=options)
    assert "open GOPs" in refusal(path, read_frame_table(LocalFile(path)))


def test_pictures_that_have_to_be_turned_are_refused(tmp_path):
    path = write_coded(tmp_path / "a.mp4", rotation=90)
    with pytest.raises(RowError, match="turn"):
        next(decode_decord.read_frames(LocalFile(path), read_frame_table(LocalFile(path)), [0], 90))


def test_damage_is_an_error_of_one_plain_line(tmp_path):
    path = write_coded(tmp_path / "a.mp4")
    table = read_frame_table(LocalFile(path))
    data = bytearray(path.read_bytes())
    for begin, size in zip(table.offset.tolist(), table.size.tolist(), strict=True):
        data[begin : begin + size] = bytes(size)
    path.write_bytes(data)
    message = refusal(path, table)
    assert ".cc:" not in message
    assert "stack" not in message.lower()
