"""The stage that reads videos, in this process. What becomes of hostile files is tested with the reader itself."""

import gc
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import remote_file, storage
from pipeline.attempts import BegunWork
from pipeline.config import ModelConfig
from pipeline.config_load import load_config
from pipeline.frame_size import FixedSize
from pipeline.model_load import find_model
from pipeline.run import decoder_arguments
from pipeline.stages import VIDEOS_AT_ONCE, Decoder
from pipeline.stages_tables import DECODED_SCHEMA
from pipeline.video.limits import Limits
from pipeline.video.sampling import Sampling
from tests.jobs.conftest import BUCKET
from tests.jobs.groups import frames_of, group, groups, item
from tests.video.samples import read_number, write_bad_files, write_video


def child_processes() -> set[str]:
    """Process ids of the direct children of this process."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where temporary files of this process lie."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_the_decoder_hands_on_the_uniform_frames(tmp_path, decoder):
    table = decoder(groups(group(write_video(tmp_path / "a.mp4", frames=22), [item("x")])))
    assert table.schema == DECODED_SCHEMA
    assert [read_number(frame) for frame in frames_of(table)] == [0, 7, 14, 21]
    row = table.drop_columns("pixels").to_pylist()[0]
    assert (row["width"], row["height"], row["codec"]) == (64, 48, "h264")
    assert row["decode_backend"] in ("decord", "pyav")
    assert (row["error"], row["attempts"]) == (None, 1)
    assert row["bytes_fetched"] == (tmp_path / "a.mp4").stat().st_size
    assert row["decode_cpu_ms"] > 0
    assert row["decode_ms"] > 0
    assert row["items"] == [item("x")]


def test_a_group_may_ask_for_its_own_range_and_number_of_frames(tmp_path, decoder):
    path = write_video(tmp_path / "a.mp4", frames=40, fps=10)
    table = decoder(groups(group(path, [item("x")], frames=2, start_s=1.0, end_s=2.0)))
    assert [read_number(frame) for frame in frames_of(table)] == [10, 19]


@pytest.mark.parametrize(
    ("sampling", "numbers"),
    [
        (Sampling(3), [0, 25, 40]),  # the middle of 0 … 40 is 20; the last has no keyframe within ten frames
        (Sampling(3, "uniform"), [0, 20, 40]),
        (Sampling(8, "fps", fps=1.0), [0, 10, 20, 30, 40]),
    ],
)
def test_the_job_s_policy_chooses_the_frames(tmp_path, sampling, numbers):
    path = write_video(tmp_path / "a.mp4", frames=41, fps=10, gop=25)
    with closing(Decoder(sampling, Limits(), backend="pyav")) as decoder:
        table = decoder(groups(group(path, [item("x")])))
    assert [read_number(frame) for frame in frames_of(table)] == numbers
    assert table["frame_times_s"][0].as_py() == pytest.approx([number / 10 for number in numbers])
    assert table["decode_backend"][0].as_py() == "pyav"


def test_the_job_file_reaches_the_decoder():
    model = find_model(ModelConfig(), lambda _: None).info
    given = ["manifest=m", "output=o", "video.policy=fps", "video.fps=0.5", "video.backend=pyav"]
    given += ["video.decode_timeout_s=7", "video.decoder_memory_mb=1024", "failures.retries=3"]
    assert decoder_arguments(load_config(None, given, "qa"), model) == {
        "sampling": Sampling(model.default_frames, "fps", fps=0.5),
        "limits": Limits(decode_timeout_s=7, memory_mb=1024),
        "frame_size": model.frame_size,
        "backend": "pyav",
        "retries": 3,
    }
    assert decoder_arguments(load_config(None, [*given, "video.frames=5"], "qa"), model)["sampling"].frames == 5


def test_frames_travel_at_the_size_that_the_model_looks_at(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=3, size=(160, 96))
    with closing(Decoder(Sampling(3), Limits(), FixedSize(56, 64))) as decoder:
        table = decoder(groups(group(path, [item("x")])))
    assert table["shape"][0].as_py() == [3, 56, 64, 3]
    assert [read_number(frame) for frame in frames_of(table)] == [0, 1, 2]
    assert (table["width"][0].as_py(), table["height"][0].as_py()) == (160, 96)


@pytest.mark.parametrize(
    ("kind", "stage", "code"),
    [("empty", "decode", "empty_file"), ("audio", "decode", "no_video_stream"), ("missing", "fetch", "not_found")],
)
def test_a_bad_video_carries_its_error_on(tmp_path, decoder, kind, stage, code):
    table = decoder(groups(group(write_bad_files(tmp_path)[kind], [item("x")])))
    row = table.to_pylist()[0]
    assert (row["error"]["stage"], row["error"]["code"], row["pixels"]) == (stage, code, None)
    assert row["attempts"] == 1


def test_a_video_that_takes_too_long_is_given_up(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    with closing(Decoder(Sampling(2), Limits(decode_timeout_s=1e-6))) as decoder:
        row = decoder(groups(group(path, [item("x")]))).to_pylist()[0]
    assert (row["error"]["stage"], row["error"]["code"]) == ("decode", "decode_timeout")
    assert row["decode_ms"] > 0
    assert row["bytes_fetched"] == path.stat().st_size


def test_a_video_on_s3_leaves_no_file_behind(s3_server, tmp_path, scratch, decoder):
    path = write_video(tmp_path / "a.mp4", frames=22)
    s3_server.put(str(path), f"{BUCKET}/stages/a.mp4")
    table = decoder(groups(group(f"s3://{BUCKET}/stages/a.mp4", [item("x")])))
    assert [read_number(frame) for frame in frames_of(table)] == [0, 7, 14, 21]
    row = table.drop_columns("pixels").to_pylist()[0]
    assert (row["bytes_fetched"], row["attempts"]) == (path.stat().st_size, 1)
    assert row["fetch_ms"] > 0
    assert list(scratch.iterdir()) == []


def test_what_is_not_on_s3_is_asked_for_once(s3_server, scratch, decoder):
    row = decoder(groups(group(f"s3://{BUCKET}/stages/gone.mp4", [item("x")]))).to_pylist()[0]
    assert (row["error"]["stage"], row["error"]["code"], row["attempts"]) == ("fetch", "not_found", 1)
    assert (row["bytes_fetched"], row["decode_ms"]) == (None, None)


def test_a_server_that_stays_away_is_asked_as_often_as_the_job_allows(s3_server, monkeypatch):
    monkeypatch.setattr(remote_file, "OUTAGE_S", 0.0)
    monkeypatch.setitem(storage._S3_CONFIG, "retries", {"mode": "standard", "total_max_attempts": 1})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    with closing(Decoder(Sampling(2), Limits(), retries=1)) as decoder:
        row = decoder(groups(group(f"s3://{BUCKET}/stages/a.mp4", [item("x")]))).to_pylist()[0]
    assert (row["error"]["stage"], row["error"]["code"], row["attempts"]) == ("fetch", "fetch_failed", 2)


def test_a_video_that_decoders_died_of_is_given_up(tmp_path):
    asked = groups(group(write_video(tmp_path / "a.mp4"), [item("x")]))
    work = f"decode {asked['shard'][0]} {asked['group'][0]}"
    count = BegunWork()
    for _ in range(2):
        count.begin(work, alone=True)
    with closing(Decoder(Sampling(2), Limits(), retries=2, attempts=count)) as decoder:
        row = decoder(asked).to_pylist()[0]
        assert (row["error"], row["attempts"]) == (None, 3)
    with closing(Decoder(Sampling(2), Limits(), retries=2, attempts=count)) as decoder:
        row = decoder(asked).to_pylist()[0]
    assert row["error"] == {
        "stage": "decode",
        "code": "worker_died",
        "message": "the process that worked on it died 3 times",
    }
    assert (row["attempts"], row["pixels"]) == (3, None)


def test_two_videos_may_be_in_work_at_once(tmp_path, decoder):
    paths = [write_video(tmp_path / f"{n}.mp4", frames=n) for n in range(1, 7)]
    with ThreadPoolExecutor(VIDEOS_AT_ONCE) as pool:
        tables = list(pool.map(decoder, [groups(group(path, [item("x")])) for path in paths]))
    assert [table["frame_times_s"][0].as_py()[-1] for table in tables] == pytest.approx([n / 10 for n in range(6)])
    assert [len(frames_of(table)) for table in tables] == [1, 2, 3, 4, 4, 4]


def test_a_decoder_that_is_dropped_takes_its_children_along(tmp_path):
    before = child_processes()
    decoder = Decoder(Sampling(2), Limits())
    decoder(groups(group(write_video(tmp_path / "a.mp4"), [item("x")])))
    assert len(child_processes() - before) == 1
    del decoder
    gc.collect()
    assert child_processes() <= before


def test_the_decoding_process_loads_no_model_code(tmp_path):
    write_video(tmp_path / "a.mp4")
    program = (
        "import sys, pyarrow as pa\n"
        "from pipeline.stages import Decoder, Limits, Sampling\n"
        "from pipeline.stages_tables import GROUP_SCHEMA, read_groups\n"
        "row = {name: None for name in GROUP_SCHEMA.names} | {'uri': sys.argv[1], 'items': []}\n"
        "table = Decoder(Sampling(2), Limits())(pa.Table.from_pylist([row], schema=GROUP_SCHEMA))\n"
        "heavy = {'torch', 'transformers', 'pruning', 'ray', 'av', 'decord'}\n"
        "print(table['error'].to_pylist(), sorted(heavy & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.mp4")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == "[None] []", run.stderr
