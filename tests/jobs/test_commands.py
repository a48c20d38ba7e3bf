"""The command lines, as a user types them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
from typer.testing import CliRunner

import jobs.caption
import jobs.qa
from jobs.console import Again, Display, run_command, show_summary, summary_rows
from pipeline.config_load import load_config
from pipeline.progress import Progress
from pipeline.run import run_job
from tests.video.samples import write_video

ROOT = Path(__file__).resolve().parents[2]


def command(*words: str, temporary: Path, **kwargs) -> subprocess.CompletedProcess:
    # RAY_TMPDIR shows whether a cluster was started, and keeps it apart from others on this machine.
    environment = {**os.environ, "RAY_TMPDIR": str(temporary), "COLUMNS": "80"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500, **kwargs
    )


def select(query: str) -> list[tuple]:
    with duckdb.connect() as connection:
        return connection.execute(query).fetchall()


@pytest.fixture
def short(tmp_path_factory):
    """A folder with a short path, which Ray's sockets need."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="hv") as folder:
        yield Path(folder)


@pytest.fixture
def job_file(tmp_path, write_manifest):
    """A caption job over three small videos."""
    rows = [{"uri": str(write_video(tmp_path / f"{n}.mp4", frames=10))} for n in range(3)]
    path = tmp_path / "job.yaml"
    path.write_text(
        f"task: caption\nname: small\nmanifest: {write_manifest(rows)}\noutput: {tmp_path}/out\n"
        "budget: {retention: 0.3}\ngeneration: {max_new_tokens: 4}\n"
    )
    return path


def test_a_job_that_is_told_to_end_hands_on_its_lease(tmp_path, write_manifest, short):
    rows = [{"uri": str(write_video(tmp_path / f"{n}.mp4", frames=10))} for n in range(60)]
    words = ["-m", "jobs.caption", "--config", "configs/demo-caption.yaml", f"manifest={write_manifest(rows)}"]
    process = subprocess.Popen(
        [sys.executable, *words, f"output={tmp_path}/out", "cluster.decoders=1", "cluster.rows_per_shard=2"],
        cwd=ROOT,
        env={**os.environ, "RAY_TMPDIR": str(short), "RAY_ADDRESS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(tmp_path.glob("out/results/*/*.parquet")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "out/runs/lease.json").read_text())["released"]
    [summary] = tmp_path.glob("out/runs/*/summary.json")
    assert json.loads(summary.read_text())["exit_status"] == 130


def test_the_caption_job_from_the_command_line(job_file, tmp_path, short):
    run = command("jobs.caption", "--config", str(job_file), "video.frames=8", temporary=short)
    assert run.returncode == 0, run.stderr
    assert "3 answered of 3" in run.stdout
    assert "0.3" in run.stdout
    results = next(line.split(maxsplit=1)[1] for line in run.stdout.splitlines() if line.startswith("results"))
    assert select(f"SELECT frames, status FROM '{results}'") == [(8, "ok")] * 3
    query = next(line.split(maxsplit=1)[1] for line in run.stdout.splitlines() if line.startswith("query"))
    shown = subprocess.run(query, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert (shown.returncode, "retention_achieved" in shown.stdout) == (0, True), shown.stderr
    # Nothing but our own lines reaches the terminal.
    assert all(line.startswith(("planning", "starting", "answering", "done")) for line in run.stderr.splitlines())
    assert list(short.iterdir()), "no cluster was started there, so the tests that look for one see nothing"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["budget.retention=1.5"], "budget.retention"),
        (["manifest=/no/such/manifest.jsonl"], "manifest.jsonl"),
    ],
)
def test_a_mistake_is_one_line_and_status_2_before_any_cluster(job_file, given, told, short):
    run = command("jobs.caption", "--config", str(job_file), *given, temporary=short)
    assert run.returncode == 2
    [line] = run.stderr.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert run.stdout == ""
    assert list(short.iterdir()) == []


@pytest.fixture
def no_cluster(monkeypatch):
    monkeypatch.setattr("pipeline.run.cluster", lambda: pytest.fail("a cluster was started"))


def unreadable_output(tmp_path: Path) -> Path:
    (tmp_path / "a-file").write_text("in the way")
    return tmp_path / "a-file" / "out"


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda folder: ["budgett.retention=0.5"], "budgett"),
        (lambda folder: ["budget.retention=0"], "budget.retention"),
        (lambda folder: ["video.policy=random"], "video.policy"),
        (lambda folder: ["task=qa"], "task"),
        (lambda folder: ["model.source=/no/such/model"], "/no/such/model"),
        (lambda folder: [f"output={unreadable_output(folder)}"], "a-file"),
        (lambda folder: [f"manifest={folder}/empty.jsonl"], "empty"),
        (lambda folder: [f"manifest={folder}/urls.csv"], "uri"),
        (lambda folder: [f"manifest={folder}/nothing"], "nothing"),
        (lambda folder: ["pruning.method=hieravide"], "pruning.method = 'hieravide'"),
        (lambda folder: ["pruning.method=fastv", "pruning.tau=0.5"], "pruning.tau = 0.5"),
        (lambda folder: ["pruning.segments=0"], "pruning.segments = 0"),
        (lambda folder: ["pruning.method=fastv", "budget.retention=0.1"], "budget.retention = 0.1 is out of reach"),
        (lambda folder: [f"pruning.calibration={folder}/gone.json"], "gone.json"),
        (lambda folder: [f"pruning.calibration={folder}/other.json"], "made for the model other-7b (bbbbbbbbbbbb)"),
    ],
)
def test_what_the_user_must_change_is_one_line_on_stderr(job_file, tmp_path, capfd, given, told):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "urls.csv").write_text("url\n/a.mp4\n")
    (tmp_path / "nothing").mkdir()
    other = {"format": 1, "model": "other-7b", "model_hash": "b" * 64, "method": "hieravid", "options": {}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert run_command("caption", job_file, given(tmp_path)) == 2
    out, err = capfd.readouterr()
    [line] = err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert out == ""


def test_a_missing_job_file_is_named(tmp_path, capfd):
    assert run_command("qa", tmp_path / "gone.yaml", []) == 2
    assert "gone.yaml" in capfd.readouterr().err


@pytest.mark.parametrize(("module", "task"), [(jobs.caption, "caption"), (jobs.qa, "qa")])
def test_each_command_runs_its_task_with_what_it_was_given(monkeypatch, tmp_path, module, task):
    seen = []
    monkeypatch.setattr("jobs.console.run_command", lambda *given: seen.append(given) or 3)
    result = CliRunner().invoke(module.app, ["--config", "a.yaml", "budget.retention=0.3", "name=x"])
    assert (seen, result.exit_code) == ([(task, Path("a.yaml"), ["budget.retention=0.3", "name=x"], Again())], 3)


def test_the_options_of_a_second_start(monkeypatch):
    seen = []
    monkeypatch.setattr("jobs.console.run_command", lambda *given: seen.append(given) or 0)
    CliRunner().invoke(
        jobs.qa.app, ["--config", "a", "--retry-failed", "--code", "lost", "--code", "truncated", "name=x"]
    )
    CliRunner().invoke(jobs.qa.app, ["--config", "a", "--restart"])
    assert [given[2:] for given in seen] == [
        (["name=x"], Again(failed=True, codes=frozenset({"lost", "truncated"}))),
        ([], Again(restart=True)),
    ]


@pytest.mark.parametrize(
    ("again", "told"),
    [
        (Again(failed=True, restart=True), "give one of them"),
        (Again(codes=frozenset({"lost"})), "--code says which failed rows"),
        (Again(failed=True, codes=frozenset({"gone"})), "'gone' is not an error code"),
    ],
)
def test_options_that_make_no_sense_are_the_users_to_change(job_file, again, told, capfd):
    assert run_command("caption", job_file, [], again) == 2
    assert told in capfd.readouterr().err


def test_a_job_whose_rows_are_all_done_says_so_and_succeeds(job_file, write_manifest, capfd):
    given = [f"manifest={write_manifest([{'uri': 'ftp://a/b.mp4'}], 'bad.jsonl')}"]
    assert run_command("caption", job_file, given) == 1
    assert "nothing to do" not in capfd.readouterr().err
    assert run_command("caption", job_file, given) == 0
    out, err = capfd.readouterr()
    assert err.startswith("nothing to do: every row of the manifest has its result")
    assert "0 answered of 1" in out


@pytest.mark.parametrize(
    ("moment", "line"),
    [
        (Progress("plan"), "planning, 0 s"),
        (
            Progress("answer", 5, 1, 90, "", 0.5, 170.0),
            "answering 5 of 90 rows, 1 failed, 0.5 rows/s, about 3 min left, 0 s",
        ),
        (
            Progress("answer", 5, 0, 90, "", 1234.5, 8_000.0),
            "answering 5 of 90 rows, 1,234 rows/s, about 2 h 13 min left, 0 s",
        ),
        (Progress("answer", 89, 0, 90, "", 2.0, 0.5), "answering 89 of 90 rows, 2 rows/s, about 1 s left, 0 s"),
    ],
)
def test_a_line_of_progress(moment, line):
    told = Display()._line(moment)
    assert re.sub(r"\d+ s$", "0 s", told) == line


def test_too_many_failures_are_named_after_the_table(job_file, tmp_path, write_manifest, capfd):
    manifest = write_manifest([{"uri": "ftp://a/b.mp4"}, {"uri": ""}], "bad.jsonl")
    assert run_command("caption", job_file, [f"manifest={manifest}"]) == 1
    out, err = capfd.readouterr()
    assert err.splitlines()[-1].startswith(
        "error: 2 of 2 rows failed (100.0%), more than failures.max_failed_share allows (5.0%): "
    )
    assert "uri_scheme 1" in err
    assert "uri_scheme 1" in out
    assert "0 answered of 2" in out
    assert len(select(f"SELECT * FROM '{tmp_path}/out/results/**/*.parquet'")) == 2


def test_a_run_without_an_answer_has_no_rates_in_its_table(tmp_path, write_manifest, monkeypatch):
    manifest = write_manifest([{"uri": "ftp://host/a.mp4"}])
    summary = run_job(load_config(None, [f"manifest={manifest}", f"output={tmp_path}/out"], "caption"))
    told = dict(summary_rows(summary))
    assert (told["videos/min"], told["mean retention"], told["busy"]) == ("none", "none (asked 1)", "0.0 s")


def test_the_query_that_a_job_prints_works_whatever_its_output_is_called(tmp_path, write_manifest, capsys):
    manifest = write_manifest([{"uri": "ftp://host/a.mp4"}])
    output = tmp_path / "it's [a] *strange* name?"
    show_summary(run_job(load_config(None, [f"manifest={manifest}", f"output={output}"], "caption")))
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("query")]
    shown = subprocess.run(line.partition(" ")[2], shell=True, capture_output=True, text=True, timeout=100)
    assert (shown.returncode, "video_id" in shown.stdout) == (0, True), shown.stderr
