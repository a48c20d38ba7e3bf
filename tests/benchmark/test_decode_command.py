"""`python -m jobs.benchmark decode`: a table and a file, failures in lines, and a second call that goes on."""

import json
import os
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import jobs.benchmark
from pipeline.benchmark.decode import run
from pipeline.benchmark.decode.clips import WARM_UP, make_clip
from pipeline.benchmark.decode.run import Bench, Clip, Row, WorkerError


def call(*arguments):
    return CliRunner().invoke(jobs.benchmark.app, ["decode", *map(str, arguments)])


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(replace(WARM_UP, duration_s=2), tmp_path_factory.mktemp("clip"))


def test_it_measures_given_files_and_writes_rows(tmp_path, clip):
    file = tmp_path / "out" / "rows.json"
    text = tmp_path / "text.mp4"
    text.write_text("no video\n" * 50)
    done = call(clip, text, "--frames=4", "--repeats=1", "--cache", tmp_path / "cache", "--json", file)
    assert done.exit_code == 0, done.output
    content = json.loads(file.read_text())
    assert content.keys() == {"header", "rows", "aims", "failures"}
    assert content["header"].keys() > {"device", "commit", "measured_at", "av", "decord", "frames"}
    rows = content["rows"]
    assert all(list(row) == list(Row.__dataclass_fields__) for row in rows)
    cases = [(row["system"], row["policy"]) for row in rows]
    assert [case for case in cases if case[0] != "torchcodec"] == [
        *(("ours", policy) for policy in ("uniform", "keyframe", "fps", "scene")),
        *((system, policy) for system in ("ours, isolated", "decord", "pyav") for policy in ("uniform", "keyframe")),
    ]
    exact = [row for row in rows if row["policy"] == "uniform"]
    assert {(row["clip"], row["frames"], row["codec"], row["duration_s"]) for row in exact} == {
        (str(clip), 4, "h264", 2.0)
    }
    assert max(row["max_time_error_s"] for row in exact) < 1e-3
    assert len(content["failures"]) == 1
    assert content["failures"][0].startswith(f"{text}: ")
    assert sum(line.startswith(("  pass", "  FAIL")) for line in done.output.splitlines()) == len(content["aims"]) >= 5
    assert f"commit {content['header']['commit']}" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["/nowhere.mp4"], "/nowhere.mp4: no such file"), (["--clip=mpeg2-*"], "--clip mpeg2-*: there are only h264-")],
)
def test_what_cannot_be_measured_is_said_in_a_line(arguments, message, tmp_path):
    done = call(*arguments, "--cache", tmp_path)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "POLICIES", {"pyav": ("uniform",)})
    return Bench(tmp_path / "cache", 4, 2, lambda line: None)


def test_a_second_call_goes_on_where_the_first_ended(bench, clip, monkeypatch):
    first = bench.measure(Clip("clip", clip, WARM_UP.part))
    with (bench.folder / "measured.jsonl").open("a") as ledger:
        ledger.write('{"key": "cut off')
    orders = []
    work = run._work
    monkeypatch.setattr(run, "_work", lambda order: orders.append(order) or work(order))
    again = Bench(bench.folder, 4, 2, lambda line: None).measure(Clip("clip", clip, WARM_UP.part))
    assert again == first
    assert len(first.rows) == 1
    assert [order for order in orders if "look" not in order] == []
    more = Bench(bench.folder, 5, 1, lambda line: None).measure(Clip("clip", clip, WARM_UP.part))
    assert [row.frames for row in more.rows] == [5]


def test_a_changed_file_is_measured_again(bench, tmp_path, clip):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    bench.measure(Clip("copy", copy))
    lines = len((bench.folder / "measured.jsonl").read_text().splitlines())
    os.utime(copy, (1, 1))
    bench.measure(Clip("copy", copy))
    assert len((bench.folder / "measured.jsonl").read_text().splitlines()) == 2 * lines


def test_the_least_of_the_repeats_is_reported_and_long_ones_are_not_repeated(bench, clip, monkeypatch):
    cpu_s = iter([3.0, 9.0, 1.0, 2.0])

    def work(order):
        if "look" in order:
            return {"codec": "h264", "frames": 60, "duration_s": 2.0, "max_gap_s": 0.4, "wanted_s": [0.0, 0.5]}
        if order["system"] == "torchcodec":
            return {"missing": True}
        usage = {"cpu_s": next(cpu_s), "wall_s": 1.0, "bytes_read": 10, "peak_mb": 5.0}
        return {"usage": usage, "frames": 2, "max_time_error_s": 0.0}

    monkeypatch.setattr(run, "POLICIES", {"pyav": ("uniform", "keyframe", "scene"), "torchcodec": ("uniform",)})
    monkeypatch.setattr(run, "_work", work)
    rows = bench.measure(Clip("clip", clip)).rows
    assert [(row.policy, row.cpu_s) for row in rows] == [("uniform", 2.0), ("keyframe", 9.0), ("scene", 1.0)]
    assert bench.missing == ["torchcodec"]


def test_a_process_that_hangs_is_ended(tmp_path):
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)  # opening it waits for a writer that never comes
    with pytest.raises(WorkerError, match="no result within"):
        run._work({"look": str(pipe), "frames": 4}, deadline_s=0.5)


def test_a_process_that_dies_is_a_failure(monkeypatch):
    monkeypatch.setattr(run.sys, "executable", "/bin/false")
    with pytest.raises(WorkerError, match="ended with status 1"):
        run._work({"look": "x", "frames": 4})
