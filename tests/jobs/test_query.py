"""Questions to results, as a user types them."""

import csv
import io
import json
from datetime import date, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import pipeline.queries
import pipeline.query
from jobs.hieravid import run
from jobs.query import NAMES
from pipeline.errors import UserError
from pipeline.query import Results
from pipeline.query_files import find_place
from pipeline.query_output import to_json
from pipeline.storage import read_bytes
from tests.jobs.conftest import BUCKET
from tests.jobs.outputs import answered, failed, questions, write_run


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """A folder on each kind of storage, with a name that SQL and shells take for something else."""
    if request.param == "local":
        return str(tmp_path / "it's a name")
    request.getfixturevalue("s3_server")
    return f"s3://{BUCKET}/it's a {request.node.name.partition('[')[0]}"


def ask(capsys, *words: str) -> list[dict]:
    capsys.readouterr()
    status = run(["query", *words, "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def refusal(capsys, *words: str, status: int = 2) -> str:
    capsys.readouterr()
    assert run(["query", *words]) == status
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith("error: ")
    return line


def half_failed(item: dict) -> dict:
    return failed(item) if item["video_id"] in ("v1", "v3") else answered(item)


def test_sql_over_one_run_or_over_all_of_several_outputs(place, capsys):
    write_run(place, "run-1", questions(3))
    write_run(place, "run-2", [{**row, "camera": "north"} for row in questions(2)], fingerprint="1" * 12)
    write_run(place, "run-3", [{**row, "camera": 7} for row in questions(1)], name="other")
    count = "SELECT run_id, count(*) AS n, count(camera) AS cameras FROM results GROUP BY 1 ORDER BY 1"
    assert ask(capsys, f"{place}/output/runs/run-1", "SELECT count(*) AS n FROM results") == [{"n": 3}]
    assert [row["n"] for row in ask(capsys, f"{place}/output", count)] == [3, 2]
    told = ask(capsys, f"{place}/output", f"{place}/other", count)
    assert [(row["run_id"], row["n"], row["cameras"]) for row in told] == [
        ("run-1", 3, 0),
        ("run-2", 2, 2),
        ("run-3", 1, 1),
    ]
    [row] = ask(capsys, f"{place}/other", "SELECT run_date, started_at, stage_tokens, camera FROM results")
    assert (row["run_date"], row["started_at"][:19]) == ("2026-11-22", "2026-11-22T20:30:00")


def test_why_rows_failed(place, capsys):
    write_run(place, "run-1", [*questions(4), {"uri": "ftp://a/b.mp4", "question": "q"}], half_failed)
    [cut, scheme] = ask(capsys, f"{place}/output", "failures")
    assert (cut["error_stage"], cut["error_code"], cut["rows"], cut["share"], cut["videos"]) == (
        *("decode", "truncated", 2),
        *(0.4, 2),
    )
    assert cut["example"] in ("/videos/1.mp4", "/videos/3.mp4")
    assert "ends before its index" in cut["message"]
    assert (scheme["error_code"], scheme["rows"]) == ("uri_scheme", 1)


def test_the_slowest_rows_come_first_and_say_where(place, capsys):
    write_run(place, "run-1", questions(3), lambda item: answered(item, total_ms=1000.0 * int(item["video_id"][1])))
    told = ask(capsys, "slowest", f"{place}/output")
    assert [(row["video_id"], row["total_ms"], row["decode_ms"]) for row in told] == [
        ("v2", 2000, 90),
        ("v1", 1000, 90),
        ("v0", 0, 90),
    ]


def test_retention_by_run(place, capsys):
    write_run(place, "run-1", questions(2), lambda item: answered(item, retention_achieved=0.4))
    write_run(place, "run-2", questions(4), half_failed, fingerprint="1" * 12)
    told = ask(capsys, f"{place}/output", "retention")
    assert [(row["run_id"], row["rows"], row["mean"], row["kept_tokens"]) for row in told] == [
        ("run-1", 2, 0.4, 80),
        ("run-2", 2, 0.5, 100),
    ]


def test_cost_is_busy_time_and_only_that_of_gpus_has_a_price(tmp_path, capsys):
    place = str(tmp_path)
    write_run(place, "run-1", questions(2), lambda item: answered(item, device="cuda:0", vision_ms=1.8e6))
    write_run(place, "run-2", questions(2), fingerprint="1" * 12)
    told = ask(capsys, f"{place}/output", "cost", "--usd-per-gpu-hour", "3")
    found = {(row["run_id"], row["stage"]): (row["device"], row["busy_s"], row["usd"]) for row in told}
    assert found["run-1", "vision"] == ("gpu", 3600.0, 3.0)
    assert found["run-1", "decode"] == ("cpu", 0.18, None)
    assert found["run-2", "vision"] == ("cpu", 0.08, None)
    assert len(found) == 12
    without = ask(capsys, f"{place}/output", "cost")
    assert {row["usd"] for row in without} == {None}
    assert sum(row["share"] for row in without if row["run_id"] == "run-2") == pytest.approx(1, abs=1e-3)


def test_a_difference_across_fingerprints(place, capsys):
    both = [*questions(4), {**questions(1)[0], "question": "why"}, {**questions(1)[0], "start_s": 2.0}]
    write_run(place, "run-1", [*both, *questions(1)], lambda item: answered(item, retention_achieved=0.6))

    def differently(item):
        if item["video_id"] == "v1":
            return failed(item)
        return answered(
            item,
            answer="new"
            if item["video_id"] == "v2" or item["start_s"]
            else "WHY"
            if item["prompt"] == "why"
            else "WHAT",
        )

    write_run(
        place, "run-2", [*both, {"uri": "/videos/9.mp4", "video_id": "v9", "question": "what"}], differently, "1" * 12
    )
    capsys.readouterr()
    assert run(["query", f"{place}/output", "diff", "run-1", "run-2", "--json"]) == 0
    out, err = capsys.readouterr()
    found = [(row["video_id"], row["start_s"], row["n"], row["change"]) for row in json.loads(out)]
    assert sorted(found, key=str) == [
        ("v0", 2.0, 1, "answer"),
        ("v0", None, 2, "only in A"),
        ("v1", None, 1, "fails in B"),
        ("v2", None, 1, "answer"),
        ("v9", None, 1, "only in B"),
    ]
    [changed] = [row for row in json.loads(out) if row["video_id"] == "v2"]
    assert (changed["answer_a"], changed["answer_b"], changed["kept_tokens_a"], changed["kept_tokens_b"]) == (
        *("WHAT", "new"),
        *(60, 50),
    )
    assert changed["busy_ms_a"] == 200
    assert "6 rows in both, 3 of them differ; 1 only in A, 1 only in B" in err
    assert "run-1" in err.splitlines()[0]


def test_a_changed_prompt_still_compares_where_each_video_was_asked_one_thing(tmp_path, capsys):
    place = str(tmp_path)
    write_run(place, "run-1", questions(2, "describe it"), lambda item: answered(item, answer="a dog"))
    write_run(
        place, "run-2", questions(2, "tell"), lambda item: answered(item, answer=f"{item['video_id']}: a dog"), name="b"
    )
    told = ask(capsys, f"{place}/output", f"{place}/b/runs/run-2", "diff")
    assert [(row["change"], row["prompt_a"], row["prompt_b"]) for row in told] == [
        ("answer", "describe it", "tell")
    ] * 2


def test_forms_of_an_answer(place, tmp_path, capsys):
    write_run(place, "run-1", questions(3), lambda item: answered(item, answer='says "a, b"\nand', stage_tokens=[4, 2]))
    sql = "SELECT video_id, answer, stage_tokens, total_ms, codec FROM results ORDER BY 1"
    for form in ("csv", "json", "parquet"):
        assert run(["query", f"{place}/output", sql, "--out", f"{place}/answer.{form}"]) == 0
    with Results([find_place(f"{place}/output")]) as results:
        expected = [row for batch in results.batches(results.ask(sql)) for row in batch.to_pylist()]
    assert expected[0] == {
        **{"video_id": "v0", "answer": 'says "a, b"\nand', "stage_tokens": [4, 2]},
        **{"total_ms": 300.0, "codec": None},
    }
    assert json.loads(read_bytes(f"{place}/answer.json")) == expected
    assert pq.read_table(io.BytesIO(read_bytes(f"{place}/answer.parquet"))).to_pylist() == expected
    [first, *_] = csv.DictReader(io.StringIO(read_bytes(f"{place}/answer.csv").decode()))
    assert first == {
        **{"video_id": "v0", "answer": 'says "a, b"\nand', "stage_tokens": "[4, 2]"},
        **{"total_ms": "300.0", "codec": ""},
    }
    capsys.readouterr()
    assert run(["query", f"{place}/output", sql]) == 0
    out = capsys.readouterr().out
    assert 'says "a, b" and' in out
    assert "total_ms" in out


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{folder}/new.csv'",
        "COPY results TO '{file}'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM read_parquet('{folder}/secret.parquet')",
        "SELECT * FROM 'http://127.0.0.1:9/x.parquet'",
        "SELECT * FROM query('COPY results TO ''{file}''')",
        "SELECT 1; COPY (SELECT 1) TO '{folder}/new.csv'",
        "ATTACH '{folder}/new.db'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "DROP VIEW results",
        "SELECT * FROM folder",
    ],
)
def test_sql_reads_the_results_and_nothing_else_and_writes_nothing(tmp_path, capsys, sql):
    plan = write_run(str(tmp_path), "run-1", questions(1))
    [file] = Path(plan.output).rglob("results/**/*.parquet")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "secret.parquet").write_bytes(file.read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    refusal(capsys, plan.output, sql.format(folder=folder, file=file))
    with Results([find_place(plan.output)]) as results, pytest.raises(UserError):
        list(results.batches(results.ask(sql.format(folder=folder, file=file))))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["OUT", "failurs"], "did you mean failures?"),
        (["OUT"], "the names are failures"),
        (["failures"], "of which output?"),
        (["NOWHERE", "failures"], "holds no run"),
        (["EMPTY", "failures"], "has no results yet"),
        (["OUT/runs/run-7", "failures"], "the latest is run-1"),
        (["OUT", "SELECT nothing FROM results"], "nothing"),
        (["OUT", "UPDATE results SET answer = 1"], "only one SELECT"),
        (["OUT", "retention", "--usd-per-gpu-hour", "3"], "price for the question cost"),
        (["OUT", "diff", "run-1", "run-9"], "there is no run 'run-9'; the runs are run-1"),
        (["OUT", "diff", "run-1"], "diff compares two runs"),
        (["OUT", "failures", "--format", "parquet"], "needs --out"),
        (["OUT", "failures", "--out", "answer.xlsx"], "end the name in .csv, .json or .parquet"),
        (["OUT", "failures", "--json", "--format", "csv"], "give one of them"),
    ],
)
def test_what_the_user_must_change_is_one_line(tmp_path, capsys, words, told):
    write_run(str(tmp_path), "run-1", questions(1), name="OUT")
    write_run(str(tmp_path), "run-1", questions(3), name="EMPTY", committed=0, exit_status=3)
    places = {"OUT", "NOWHERE", "EMPTY"}
    words = [str(tmp_path / word) if word.split("/")[0] in places else word for word in words]
    assert told in refusal(capsys, *words)


def test_a_storage_that_is_away_is_not_the_users_fault(capsys, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "planted-key-1234")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-1234")
    assert "planted" not in refusal(capsys, "s3://archive/out", "failures", status=3)


def test_more_than_fits_into_memory_is_spilled_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    write_run(str(tmp_path), "run-1", questions(1))
    monkeypatch.setitem(pipeline.query._SETTINGS, "memory_limit", "30MB")
    monkeypatch.setitem(pipeline.query._SETTINGS, "threads", 1)
    sql = "SELECT count(*) AS n FROM (SELECT DISTINCT md5(i::VARCHAR) FROM range(2000000) numbers(i))"
    with Results([find_place(str(tmp_path / "output"))]) as results:
        assert results.row(sql) == {"n": 2_000_000}
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_names_are_those_that_the_command_knows():
    assert tuple(pipeline.queries.QUESTIONS) == NAMES


def test_what_json_has_no_form_for_is_text():
    assert json.loads(to_json({"a": date(2026, 11, 22), "b": timedelta(seconds=1)})) == {
        "a": "2026-11-22",
        "b": "0:00:01",
    }
