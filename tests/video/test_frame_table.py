from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import RowError
from pipeline.video.container import open_video
from pipeline.video.file import ByteRange, LocalFile
from pipeline.video.frame_table import FrameTable, Packets
from pipeline.video.packet_scan import frame_table_of, from_index, from_packets, read_frame_table
from tests.video.samples import remux, write_coded, write_variable_rate_video, write_video

REORDERED = {"g": "12", "bf": "3", "b_strategy": "0"}


def table_of(path: Path) -> FrameTable:
    return read_frame_table(LocalFile(path))


def reordered(path: Path, **kwargs) -> Path:
    return write_coded(path, options=REORDERED, **kwargs)


def open_gop(path: Path) -> Path:
    return write_coded(path, options=REORDERED | {"x264-params": "open-gop=1:scenecut=0"})


def hide_vp8_frame(source: Path, path: Path, number: int) -> Path:
    """The file with a frame that is kept for reference and never shown, as encoders make them in two passes."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for place, packet in enumerate(packet for packet in old.demux(video=0) if packet.size):
            data = bytearray(bytes(packet))
            if place == number:
                data[0] &= ~0x10  # show_frame
            changed = av.Packet(bytes(data))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, copy
            new.mux(changed)
    return path


INDEXED = {
    "reordered": lambda p: reordered(p / "a.mp4"),
    "index first": lambda p: reordered(p / "a.mp4", mux_options={"movflags": "faststart"}),
    "quicktime with sound": lambda p: reordered(p / "a.mov", with_sound=True),
    "without an edit list": lambda p: reordered(p / "a.mp4", mux_options={"use_editlist": "0"}),
    "negative offsets": lambda p: reordered(p / "a.mp4", mux_options={"movflags": "negative_cts_offsets"}),
    "a variable rate": lambda p: write_variable_rate_video(p / "a.mp4", [0, 0.1, 0.2, 1.0, 1.1, 3.0, 3.05, 4.0]),
    "a cut that hides its keyframe": lambda p: remux(reordered(p / "a.mp4"), p / "b.mp4", shift_s=-0.7),
    "a late start": lambda p: remux(reordered(p / "a.mp4"), p / "b.mp4", shift_s=1.5),
    "an open GOP": lambda p: open_gop(p / "a.mp4"),
    "keyframes only": lambda p: write_coded(p / "a.mp4", options={"g": "1"}),
    "a gradual refresh": lambda p: write_coded(p / "a.mp4", options={"x264-params": "intra-refresh=1:keyint=12"}),
    "one frame": lambda p: write_coded(p / "a.mp4", frames=1),
    "hevc": lambda p: write_coded(
        p / "a.mp4", "libx265", options={"x265-params": "keyint=12:bframes=3:log-level=0:pools=none:frame-threads=1"}
    ),
    "vp9": lambda p: write_coded(p / "a.mp4", "libvpx-vp9", options={"g": "12", "deadline": "realtime"}),
}
SCANNED = {
    "fragments": lambda p: reordered(p / "a.mp4", mux_options={"movflags": "frag_keyframe+empty_moov"}),
    "matroska": lambda p: reordered(p / "a.mkv"),
    "a transport stream": lambda p: open_gop(p / "a.ts"),
    "flash": lambda p: reordered(p / "a.flv"),
    "avi": lambda p: write_coded(p / "a.avi", "mpeg4", options={"g": "12"}),
    "vp8 with a hidden frame": lambda p: hide_vp8_frame(write_coded(p / "a.webm", "libvpx"), p / "b.webm", 7),
}


@pytest.mark.parametrize("kind", INDEXED)
def test_the_index_and_the_packets_of_an_mp4_say_the_same(tmp_path, kind):
    with open_video(LocalFile(INDEXED[kind](tmp_path))) as video:
        from_boxes, scanned = from_index(video), from_packets(video)
    assert from_boxes is not None
    for name in ("pts", "is_key", "decode_rank", "size"):
        assert getattr(from_boxes, name).tolist() == getattr(scanned, name).tolist(), name
    assert (from_boxes.time_base, from_boxes.origin) == (scanned.time_base, scanned.origin)
    assert from_boxes.end_pts == scanned.end_pts
    assert from_boxes.packets.start.tolist() == scanned.packets.start.tolist()


@pytest.mark.parametrize("kind", INDEXED | SCANNED)
def test_the_table_lists_the_frames_that_a_decoder_gives(tmp_path, kind):
    path = (INDEXED | SCANNED)[kind](tmp_path)
    with av.open(str(path)) as container:
        decoded = [frame.pts for frame in container.decode(video=0)]
    assert table_of(path).pts.tolist() == decoded


@pytest.mark.parametrize("kind", INDEXED | SCANNED)
def test_decoding_from_where_the_table_says_gives_the_true_pixels(tmp_path, kind):
    path = (INDEXED | SCANNED)[kind](tmp_path)
    table = table_of(path)
    with av.open(str(path)) as container:
        truth = {frame.pts: frame.to_ndarray() for frame in container.decode(video=0)}
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        context = container.streams.video[0].codec_context
        for index in range(0, len(table), 5):
            context.flush_buffers()
            needed = packets[table.first_packet(index) : table.decode_rank[index] + 1]
            frames = [frame for packet in [*needed, None] for frame in context.decode(packet)]
            found = next(frame for frame in frames if frame.pts == table.pts[index])
            assert np.array_equal(found.to_ndarray(), truth[found.pts]), index


def test_times_count_from_the_first_stream(tmp_path):
    late = remux(write_coded(tmp_path / "a.mp4"), tmp_path / "late.ts", shift_s=5)
    assert table_of(late).times_s[:2].tolist() == [[0, 0.04], [0.04, 0.08]]
    with_sound = write_coded(tmp_path / "b.mp4", with_sound=True)
    assert table_of(with_sound).times_s[-1].tolist() == [1.96, 2.0]


def test_times_of_a_variable_rate(tmp_path):
    times = [0.0, 0.1, 0.2, 1.0, 1.1, 3.0]
    table = table_of(write_variable_rate_video(tmp_path / "a.mp4", times))
    assert table.times_s[:, 0].tolist() == pytest.approx(times)
    assert table.times_s[:-1, 1].tolist() == pytest.approx(times[1:])


def test_a_frame_that_leads_its_keyframe_begins_one_keyframe_earlier(tmp_path):
    table = table_of(open_gop(tmp_path / "a.mp4"))
    keys = np.flatnonzero(table.is_key)
    leading = [i for i in range(len(table)) if i < keys[1] and table.decode_rank[i] > table.decode_rank[keys[1]]]
    assert leading
    assert [table.key_before(i) for i in leading] == [keys[0]] * len(leading)
    assert table.key_before(keys[1]) == keys[1]
    assert table.key_before(keys[1] + 1) == keys[1]


def test_a_gradual_refresh_is_no_place_to_begin(tmp_path):
    options = {"x264-params": "intra-refresh=1:keyint=12"}
    for name in ("a.mp4", "a.ts"):
        table = table_of(write_coded(tmp_path / name, options=options))
        assert np.flatnonzero(table.is_key).tolist() == [0]


def test_the_byte_ranges_are_all_that_decoding_reads(tmp_path):
    path = open_gop(tmp_path / "a.mp4")
    table = table_of(path)
    wanted = [3, 20, int(np.flatnonzero(table.is_key)[2])]
    kept = bytearray(path.stat().st_size)
    whole = path.read_bytes()
    for begin, end in table.byte_ranges(wanted):
        kept[begin:end] = whole[begin:end]
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        truth = {packet.pts: bytes(packet) for packet in packets}
        for index in wanted:
            for packet in packets[table.first_packet(index) : table.decode_rank[index] + 1]:
                assert kept[packet.pos : packet.pos + packet.size] == truth[packet.pts]
    assert sum(end - begin for begin, end in table.byte_ranges(wanted)) < sum(table.size)


def test_the_bytes_of_a_keyframe_are_its_own_packet(tmp_path):
    table = table_of(reordered(tmp_path / "a.mp4"))
    key = np.flatnonzero(table.is_key)[1]
    assert table.byte_ranges([key]) == [(table.offset[key], table.offset[key] + table.size[key])]


def test_bytes_of_touching_frames_are_one_range(tmp_path):
    table = table_of(write_coded(tmp_path / "a.mp4"))
    assert table.byte_ranges(np.arange(len(table))) == [(int(table.offset[0]), int(table.offset[-1] + table.size[-1]))]
    assert table.byte_ranges([]) == []


def test_hidden_packets_are_read_for_the_frames_that_refer_to_them(tmp_path):
    path = remux(reordered(tmp_path / "a.mp4"), tmp_path / "cut.mp4", shift_s=-0.7)
    table = table_of(path)
    assert not table.is_key[0]
    assert table.key_before(0) == -1
    begin, end = table.byte_ranges([0])[0]
    assert (begin, end - begin) > (0, int(table.size[0]))
    assert table.packets.is_key[table.first_packet(0)]
    assert begin == table.packets.offset[table.first_packet(0)]


def test_a_file_without_frames_says_so(tmp_path):
    path = tmp_path / "none.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    with pytest.raises(RowError) as caught:
        table_of(path)
    assert caught.value.code == "no_frames"


def test_a_transport_stream_cut_inside_a_gop_begins_with_its_first_keyframe(tmp_path):
    path = remux(reordered(tmp_path / "a.mp4"), tmp_path / "cut.ts", first_packet=5)
    table = table_of(path)
    assert table.is_key[0]
    assert len(table) == 50 - 12


def test_a_truncated_matroska_file_has_the_frames_up_to_there(tmp_path):
    whole = write_coded(tmp_path / "a.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    assert 5 < len(table_of(tmp_path / "cut.mkv")) < 45


def test_an_open_video_stays_where_it_was(tmp_path):
    with open_video(LocalFile(write_video(tmp_path / "a.mkv"))) as video:
        assert len(from_packets(video)) == 20
        assert sum(packet.size > 0 for packet in video.container.demux(video.stream)) == 20


class RecordingFile:
    """A file of which only parts are at hand: it notes what is read, and what it is told will be."""

    path = None

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.size = len(self.data)
        self.read: set[int] = set()
        self.announced: list[ByteRange] = []
        self.opened: list[BytesIO] = []

    def open(self) -> BytesIO:
        outer = self

        class Recorder(BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                begin = self.tell()
                data = super().read(size)
                outer.read.update(range(begin // 4096, -(-(begin + len(data)) // 4096)))
                return data

        self.opened.append(Recorder(self.data))
        return self.opened[-1]

    def will_read(self, ranges: Sequence[ByteRange]) -> None:
        self.announced += ranges


def test_the_index_of_an_mp4_is_read_without_its_frames(tmp_path):
    file = RecordingFile(write_coded(tmp_path / "a.mp4", frames=400, size=(320, 240), options={"qp": "0", "bf": "3"}))
    with open_video(file) as video:
        assert len(frame_table_of(video)) == 400
    assert file.announced == []
    assert len(file.read) * 4096 < 0.2 * file.size
    assert all(opened.closed for opened in file.opened)


def test_a_file_whose_packets_have_to_be_read_is_wanted_whole(tmp_path):
    file = RecordingFile(write_coded(tmp_path / "a.mkv"))
    assert len(read_frame_table(file)) == 50
    assert file.announced == [(0, file.size)]
    assert all(opened.closed for opened in file.opened)


def test_what_goes_wrong_in_fetching_bytes_is_told_as_it_is(tmp_path):
    class Unreachable(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise RowError("fetch", "fetch_failed", "the connection was reset")

    file = RecordingFile(write_coded(tmp_path / "a.mp4"))
    unreachable = Unreachable()
    file.open = lambda: unreachable
    with pytest.raises(RowError) as caught:
        read_frame_table(file)
    assert caught.value.code == "fetch_failed"
    assert unreachable.closed


def packets(pts: list[int], keys: list[int], sizes: list[int] | None = None) -> Packets:
    is_key = np.isin(np.arange(len(pts)), keys)
    size = np.array(sizes or [10] * len(pts))
    return Packets(np.array(pts, np.int64), is_key, np.ones(len(pts), bool), size, np.cumsum(size))


def build(some: Packets, origin: int | None = None) -> FrameTable:
    return FrameTable.from_packets(some, np.ones(len(some), np.int64), Fraction(1, 10), origin)


def test_packets_without_bytes_or_a_sensible_time_are_no_frames():
    table = build(packets([0, 1, 2, 1 << 62, -(1 << 63), 5], keys=[0], sizes=[9, 9, 0, 9, 9, 9]))
    assert table.pts.tolist() == [0, 1, 5]
    assert np.isfinite(table.times_s).all()


def test_of_two_frames_at_one_time_the_first_counts():
    table = build(packets([0, 1, 1, 2], keys=[0]))
    assert table.pts.tolist() == [0, 1, 2]
    assert table.decode_rank.tolist() == [0, 1, 3]


def test_a_stream_without_keyframes_is_decoded_from_its_start():
    table = build(packets([0, 1, 2, 3], keys=[]))
    assert [table.key_before(i) for i in range(4)] == [-1, -1, -1, -1]
    assert [table.first_packet(i) for i in range(4)] == [0, 0, 0, 0]


def test_frames_before_the_origin_move_it():
    assert build(packets([-5, 0, 5], keys=[0]), origin=0).times_s[0].tolist() == [0.0, 0.5]
    assert build(packets([-5, 0, 5], keys=[0]), origin=-10).times_s[0].tolist() == [0.5, 1.0]


def test_a_table_without_packets_takes_the_frames_for_all_there_are():
    ranks, keys = np.array([0, 2, 1, 3]), np.array([True, False, False, True])
    some = np.array([100, 300, 200, 400])
    table = FrameTable(np.arange(4), Fraction(1, 10), 0, 4, keys, ranks, some, np.full(4, 100))
    assert [table.key_before(i) for i in range(4)] == [0, 0, 0, 3]
    assert table.byte_ranges([1]) == [(100, 400)]
    assert table.byte_ranges([3, 0]) == [(100, 200), (400, 500)]


def test_many_keyframes_shown_backwards_take_no_time():
    table = build(packets(list(range(200_000, 0, -1)), keys=list(range(200_000))))
    assert len(table) == 200_000
    assert table.key_before(0) == 0
