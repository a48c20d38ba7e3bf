import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.video.container import open_video
from pipeline.video.file import LocalFile
from pipeline.video.mp4 import read_rotation, read_samples
from pipeline.video.mp4_boxes import child, children, is_cut_short, read_bytes, read_index
from pipeline.video.packet_scan import from_index
from tests.video.samples import remux, write_coded, write_video

TABLES = [b"stts", b"ctts", b"stss", b"stsz", b"stsc", b"stco"]


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    options = {"g": "12", "bf": "3", "b_strategy": "0"}
    return write_coded(tmp_path_factory.mktemp("mp4") / "a.mp4", options=options, with_sound=True)


@pytest.fixture(scope="module")
def moov(video) -> bytes:
    return bytes(read_index(LocalFile(video)))


def box(kind: bytes, *parts: bytes) -> bytes:
    inside = b"".join(parts)
    return struct.pack(">I", 8 + len(inside)) + kind + inside


def table(kind: bytes, *rows: tuple[int, ...], number: str = "I") -> bytes:
    return box(kind, struct.pack(">II", 0, len(rows)), *(struct.pack(f">{len(row)}{number}", *row) for row in rows))


def header(kind: bytes, timescale: int) -> bytes:
    return box(kind, struct.pack(">5I", 0, 0, 0, timescale, 0))


def build(*tables: bytes, edits: bytes = b"", matrix: tuple[int, ...] = (1, 0, 0, 0, 1, 0)) -> memoryview:
    """An index of one track, number 1, at 100 units a second in a movie at 1000."""
    track = struct.pack(">5I", 0, 0, 0, 1, 0) + bytes(20) + struct.pack(">6i", *(n << 16 for n in matrix)) + bytes(20)
    media = box(b"mdia", header(b"mdhd", 100), box(b"minf", box(b"stbl", *tables)))
    return memoryview(header(b"mvhd", 1000) + box(b"trak", box(b"tkhd", track), edits, media))


def sizes(*each: int) -> bytes:
    return box(b"stsz", struct.pack(">III", 0, 0, len(each)), struct.pack(f">{len(each)}I", *each))


PLAIN = (
    table(b"stts", (4, 10)),
    sizes(5, 6, 7, 8),
    table(b"stsc", (1, 3, 1), (2, 1, 1)),
    table(b"stco", (1000,), (2000,)),
)


def test_samples_lie_back_to_back_in_their_chunks():
    samples = read_samples(build(*PLAIN), 1)
    assert samples.offset.tolist() == [1000, 1005, 1011, 2000]
    assert samples.size.tolist() == [5, 6, 7, 8]
    assert samples.dts.tolist() == samples.pts.tolist() == [0, 10, 20, 30]
    assert samples.is_key.all()
    assert (samples.timescale, samples.shown_from, samples.shown_until) == (100, 0, None)


def test_places_beyond_four_gigabytes():
    far = table(b"co64", (5 << 32,), (6 << 32,), number="Q")
    assert read_samples(build(*PLAIN[:3], far), 1).offset.tolist()[::3] == [5 << 32, 6 << 32]


def test_composition_offsets_and_keyframes():
    extra = (table(b"ctts", (1, 20), (1, 40), (2, -10), number="i"), table(b"stss", (1,), (4,)))
    samples = read_samples(build(*PLAIN, *extra), 1)
    assert samples.pts.tolist() == [20, 50, 10, 20]
    assert samples.is_key.tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("bits", "packed"), [(4, b"\x56\x78"), (8, b"\5\6\7\10"), (16, b"\0\5\0\6\0\7\0\10")], ids=["4", "8", "16"]
)
def test_sizes_of_few_bits(bits, packed):
    compact = box(b"stz2", struct.pack(">III", 0, bits, 4), packed)
    assert read_samples(build(PLAIN[0], compact, *PLAIN[2:]), 1).size.tolist() == [5, 6, 7, 8]


def test_one_size_for_all_samples():
    same = box(b"stsz", struct.pack(">III", 0, 9, 4))
    assert read_samples(build(PLAIN[0], same, *PLAIN[2:]), 1).offset.tolist() == [1000, 1009, 1018, 2000]


def edit_list(*edits: tuple[int, int, int]) -> bytes:
    rows = b"".join(struct.pack(">Iii", *edit) for edit in edits)
    return box(b"edts", box(b"elst", struct.pack(">II", 0, len(edits)), rows))


def test_an_edit_list_shows_a_stretch_of_the_track():
    edits = edit_list((500, -1, 1 << 16), (200, 10, 1 << 16))  # 200 ms are 20 units of the track
    samples = read_samples(build(*PLAIN, edits=edits), 1)
    assert (samples.shown_from, samples.shown_until) == (10, 30)


@pytest.mark.parametrize(
    "edits",
    [
        [(100, 0, 1 << 16), (100, 20, 1 << 16)],
        [(100, 0, 1 << 17)],
        [(0, 0, 1 << 16)],
        [(100, -1, 1 << 16)],
        [(100, -5, 1 << 16)],
    ],
    ids=["two stretches", "double speed", "no length", "only a pause", "a negative begin"],
)
def test_unusual_edit_lists_are_left_to_ffmpeg(edits):
    assert read_samples(build(*PLAIN, edits=edit_list(*edits)), 1) is None


@pytest.mark.parametrize(
    "tables",
    [
        PLAIN[1:],
        (table(b"stts", (3, 10)), *PLAIN[1:]),
        (table(b"stts", (1 << 31, 10), (1 << 31, 10)), *PLAIN[1:]),
        (table(b"stts", (4, 1 << 31)), *PLAIN[1:]),
        (PLAIN[0], sizes(), *PLAIN[2:], table(b"stss", (1,))),
        (PLAIN[0], box(b"stsz", struct.pack(">III", 0, 1, 0xFFFFFFFF)), *PLAIN[2:]),
        (PLAIN[0], box(b"stsz", struct.pack(">III", 0, 0, 0xFFFFFF)), *PLAIN[2:]),
        (*PLAIN[:2], table(b"stsc", (1, 0xFFFFFFFF, 1)), PLAIN[3]),
        (*PLAIN[:2], table(b"stsc", (2, 2, 1)), PLAIN[3]),
        (*PLAIN[:2], table(b"stsc", (1, 2, 1), (9, 2, 1), (3, 2, 1)), PLAIN[3]),
        (*PLAIN[:3], box(b"stco", struct.pack(">II", 0, 0xFFFFFFFF))),
        (*PLAIN, table(b"stss", (0,))),
        (*PLAIN, table(b"stss", (5,))),
        (*PLAIN, table(b"stss")),
        (*PLAIN, table(b"ctts", (2, 5))),
    ],
)
def test_tables_that_contradict_each_other_are_left_to_ffmpeg(tables):
    assert read_samples(build(*tables), 1) is None


def test_a_track_that_is_not_there(moov):
    assert read_samples(memoryview(moov), 77) is None
    assert read_rotation(memoryview(moov), 77) == 0


def test_an_index_that_goes_on_in_fragments_is_left_to_ffmpeg():
    assert read_samples(memoryview(bytes(build(*PLAIN)) + box(b"mvex")), 1) is None


@pytest.mark.parametrize(
    ("matrix", "degrees"),
    [
        ((1, 0, 0, 0, 1, 0), 0),
        ((0, 1, 0, -1, 0, 0), 90),
        ((-1, 0, 0, 0, -1, 0), 180),
        ((0, -1, 0, 1, 0, 0), 270),
        ((-1, 0, 0, 0, 1, 0), 0),
        ((0, 0, 0, 0, 0, 0), 0),
    ],
    ids=["upright", "quarter", "half", "three quarters", "mirrored", "nothing"],
)
def test_rotation_is_clockwise(matrix, degrees):
    assert read_rotation(build(*PLAIN, matrix=matrix), 1) == degrees


def test_ffmpeg_has_the_last_word(video, moov, tmp_path):
    """An index that was read in another way than FFmpeg reads it is not used."""
    data = bytearray(video.read_bytes())
    at = data.index(b"stsz") + 12 + 4 * 20
    data[at : at + 4] = struct.pack(">I", 7)  # FFmpeg reads the same: all stays one
    (tmp_path / "same.mp4").write_bytes(data)
    with open_video(LocalFile(tmp_path / "same.mp4")) as opened:
        assert from_index(opened) is not None
        opened.__dict__["moov"] = memoryview(moov)  # the index of the undamaged file
        assert from_index(opened) is None


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([*TABLES, b"elst", b"mdhd", b"tkhd"]), at=st.integers(-4, 40), value=st.integers(0, 2**32 - 1)
)
def test_damage_in_an_index_gives_samples_or_none(moov, kind, at, value):
    damaged = bytearray(moov)
    place = damaged.index(kind) + at
    damaged[place : place + 4] = struct.pack(">I", value)
    samples = read_samples(memoryview(damaged), 1)
    assert read_rotation(memoryview(damaged), 1) in (0, 90, 180, 270)
    if samples is not None:
        lengths = {len(getattr(samples, name)) for name in ("dts", "pts", "duration", "is_key", "size", "offset")}
        assert len(lengths) == 1
        assert lengths.pop() <= 1 << 24


@pytest.mark.parametrize("part", [0, 1, 7, 8, 60, 200, 500])
def test_an_index_that_ends_early_gives_none(moov, part):
    assert read_samples(memoryview(moov)[:part], 1) is None


def test_boxes_end_where_damage_begins():
    good = box(b"free", b"abc")
    assert [(kind, bytes(inside)) for kind, inside in children(memoryview(good + b"\0\0\0\4free"))] == [
        (b"free", b"abc")
    ]
    assert list(children(memoryview(struct.pack(">I", 99) + b"free"))) == []
    large = struct.pack(">I", 1) + b"free" + struct.pack(">Q", 19) + b"abc"
    assert bytes(child(memoryview(large), b"free")) == b"abc"
    assert child(memoryview(good), b"moov") is None


def test_the_index_is_found_behind_the_frames_and_before_them(tmp_path):
    behind = read_index(LocalFile(write_video(tmp_path / "a.mp4")))
    before = read_index(LocalFile(write_video(tmp_path / "b.mp4", index_first=True)))
    assert {kind for kind, _ in children(behind)} == {kind for kind, _ in children(before)} >= {b"mvhd", b"trak"}


def test_a_file_is_cut_short_wherever_it_ends(video, tmp_path):
    whole = video.read_bytes()
    cut = tmp_path / "cut.mp4"
    assert not is_cut_short(LocalFile(video))
    for part in np.linspace(30, len(whole) - 1, 20).astype(int):
        cut.write_bytes(whole[:part])
        assert is_cut_short(LocalFile(cut)), part
    assert read_index(LocalFile(cut)) is None


def test_what_is_no_mp4_is_not_cut_short(tmp_path):
    other = tmp_path / "a.mkv"
    other.write_bytes(write_coded(tmp_path / "b.mkv").read_bytes()[:500])
    assert not is_cut_short(LocalFile(other))
    assert read_index(LocalFile(other)) is None


def test_bytes_are_read_where_they_lie(video):
    assert read_bytes(LocalFile(video), 4, 4) == b"ftyp"


def test_remuxed_files_keep_their_index(video, tmp_path):
    with open_video(LocalFile(remux(video, tmp_path / "b.mov", shift_s=1.0))) as opened:
        assert len(from_index(opened)) == 50
