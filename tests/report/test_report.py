"""Reports of runs as they come: large and small, failed, begun, old, hostile."""

import html
import re
from datetime import timedelta
from html.parser import HTMLParser

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from jobs.report import app
from pipeline.errors import UserError
from pipeline.report.forms import seconds
from pipeline.report.found import find_run
from pipeline.report.page import make_report
from pipeline.report.samples import read_samples
from pipeline.storage import join, read_bytes, write_atomic
from tests.report.runs import NOON, RUN_A, RUN_B, answered, failed, write_run, write_table

SECTIONS = ["failures", "throughput", "time", "latency", "tokens", "retention", "samples", "videos", "cost", "about"]
VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """Which elements a page has, whether each ends where it should, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.open, self.words, self.links = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        self.links += [attributes[name] for name in ("src", "href") if attributes.get(name)]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def report(*places, price=None):
    first = find_run(places[0])
    runs = [first, *(find_run(other, first) for other in places[1:])]
    page = make_report(runs, price)
    assert len(page.encode()) < 5_000_000
    told = Page(page)
    assert len(set(told.ids)) == len(told.ids)
    assert "script" not in told.tags
    for link in told.links:
        assert link.startswith("data:") or link[1:] in told.ids
    return told


def test_a_run_of_two_thousand_rows_is_told_in_numbers(place):
    rows = [answered(n) for n in range(1990)] + [failed(1990 + n) for n in range(10)]
    write_run(place, rows, files=7)
    page = report(place)
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert "1,990 of 2,000 rows answered, 10 failed." in page.text
    assert "not_found" in page.text
    assert "/archive/lost-1990.mp4 was not found" in page.text
    assert "lost-1993" not in page.text  # three examples of a code are enough
    assert "video tokens seen 1,146,240" in page.text
    assert "from layer 6 68.0 11.8 %" in page.text
    assert "prefill 39.8 s 17.7 %" in page.text
    assert page.tags.count("svg") == 3


def test_an_output_stands_for_its_latest_run_and_a_folder_for_its_own(tmp_path):
    out = str(tmp_path)
    first = write_run(out, [answered(0)], RUN_A)
    write_run(out, [answered(n) for n in range(3)], RUN_B)
    assert "3 of 3 rows answered" in report(out).text
    assert "1 of 1 rows answered" in report(first + "/").text
    (tmp_path / "runs" / "20261124T000000Z-cccccc" / "manifest").mkdir(parents=True)
    assert "3 of 3 rows answered" in report(out).text  # that one never began


def test_two_runs_stand_side_by_side(tmp_path):
    out = str(tmp_path)
    first = write_run(out, [answered(n) for n in range(10)] + [failed(10), answered(11)], RUN_A)
    other = [answered(n, video_tokens=576, retention_achieved=0.1, flops_ratio=0.1) for n in range(9)]
    other += [answered(9, answer="something else"), answered(10, video_id="lost-10"), failed(11)]
    other[10] |= {"uri": "/archive/lost-10.mp4", "prompt": "what happens"}
    other[11] |= {"video_id": "video-5", "uri": "/archive/5.mp4", "prompt": "what happens (1)"}
    write_run(out, other, RUN_B)
    page = report(first, RUN_B)
    assert "12 rows ask the same of the same video; 90.0 % of the 10 answered in both have the same answer" in page.text
    assert "1 failed only in B, 1 only in A" in page.text
    assert "Answers that differ, 1 of 1" in page.text
    assert "a red circle moves, 9 something else" in page.text
    assert "prefill FLOPs, of unpruned 29.2 % 13.5 % −53.8 %" in page.text
    assert page.ids.index("compare") < page.ids.index("failures")


def test_runs_without_a_common_row_say_so(tmp_path):
    first = write_run(str(tmp_path / "a"), [answered(0)])
    second = write_run(str(tmp_path / "b"), [])
    page = report(first, second)
    assert "The runs have no row in common" in page.text
    assert "No row has a result yet." in page.text


@pytest.mark.parametrize("with_summary", [True, False])
def test_a_run_that_has_just_begun_has_a_report(tmp_path, with_summary):
    write_run(str(tmp_path), [], planned=40, exit_status=None, with_summary=with_summary)
    page = report(str(tmp_path))
    assert "No row has a result yet." in page.text
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS


def test_a_run_that_stopped_says_what_is_missing(tmp_path):
    write_run(str(tmp_path), [answered(0)], planned=40, exit_status=130)
    assert "1 of 40 rows answered, none failed; 39 have no result: it was interrupted." in report(str(tmp_path)).text


def test_a_run_of_which_every_row_failed_has_a_report(tmp_path):
    rows = [failed(n, code) for n, code in enumerate(["not_found", "empty_file", "code of tomorrow", None])]
    write_run(str(tmp_path), rows, exit_status=1)
    page = report(str(tmp_path))
    assert "0 of 4 rows answered, 4 failed: more than the 5.0 % that the job allows." in page.text
    assert "code of tomorrow" in page.text
    assert "No row says when it was in work." in page.text
    assert "svg" not in page.tags


def test_rows_of_which_nothing_was_measured_have_a_report(tmp_path):
    unknown = {"status": "ok", "item_id": "1", "attempts": 1}
    rows = [{**dict.fromkeys(answered(0)), **unknown, "task": "qa", "config_fingerprint": "f", "code_version": "1"}]
    write_run(str(tmp_path), rows)
    assert "1 of 1 rows answered" in report(str(tmp_path)).text


def test_numbers_that_are_none_do_not_count(tmp_path):
    odd = {"total_ms": float("nan"), "prefill_ms": float("inf"), "flops_ratio": float("nan"), "stage_layers": [0]}
    times = {"started_at": NOON + timedelta(days=1), "finished_at": NOON}  # a clock that went back
    write_run(str(tmp_path), [answered(0), answered(1, **odd), answered(2, **times, stage_tokens=[])])
    page = report(str(tmp_path))
    assert "nan" not in page.text.split()
    assert "inf" not in page.text.split()
    assert "prefill 40 ms" in page.text
    assert "2 rows with stages at other layers are left out" in page.text


def test_files_of_another_version_are_read(tmp_path):
    write_run(str(tmp_path), [], planned=2)
    write_table(str(tmp_path), pa.table({"item_id": ["1", "2"], "status": ["ok", "error"], "frames": ["16", "many"]}))
    page = report(str(tmp_path))
    assert "1 of 2 rows answered, 1 failed" in page.text


HOSTILE = [
    "<script>document.title='owned'</script>",
    "</bdi></td></table><img src=x onerror=alert(1)>",
    "\u202eright to left override \u05e2\u05d1\u05e8\u05d9\u05ea",
    "\x00\x1b[31mred\x07 \ufffe",
    "🙂 漢字 ما لون الدائرة e\u0301\u0301\u0301\u0301",
    '" onmouseover="alert(1)',
    "{{ 7 * 7 }} {% for x in y %} &amp; &#60;",
]


def test_hostile_texts_are_shown_as_text(tmp_path):
    rows = []
    for n, text in enumerate(HOSTILE):
        rows.append(failed(n, video_id=text, uri=f"s3://a/{text}'\".mp4", error_message=text, error_code=text))
        rows.append(answered(50 + n, video_id=text, prompt=text, answer=text, total_ms=9e6, model=text))
    first = write_run(str(tmp_path), rows, RUN_A)
    write_run(str(tmp_path), [row | {"answer": "another"} for row in rows], RUN_B)
    write_atomic(join(first, "config.yaml"), "".join(HOSTILE).encode())
    page = report(first, RUN_B)
    assert "img" not in page.tags
    for text in HOSTILE[:3] + HOSTILE[4:]:
        assert " ".join(text.split()) in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\ufffe]", page.text)


def test_an_answer_of_a_megabyte_is_cut(tmp_path):
    rows = [answered(n, answer="x" * 1_000_000, prompt="y" * 1_000_000) for n in range(6)]
    first = write_run(str(tmp_path), rows, RUN_A)
    write_run(str(tmp_path), [row | {"answer": "z" * 1_000_000} for row in rows], RUN_B)
    page = make_report([find_run(first), find_run(str(tmp_path))])
    assert len(page) < 300_000
    assert "…" in page


def test_secrets_do_not_reach_the_page(tmp_path):
    uri = "s3://user:hunter2secret@archive/a.mp4?X-Amz-Signature=abcdef0123"
    folder = write_run(str(tmp_path), [failed(1, uri=uri, error_message=f"GET {uri} failed, token=abcdefgh12")])
    write_atomic(join(folder, "config.yaml"), f"manifest: {uri}\n".encode())
    page = make_report([find_run(folder)])
    for secret in ("hunter2secret", "abcdef0123", "abcdefgh12"):
        assert secret not in page


def test_the_cost_is_that_of_gpus_only(tmp_path):
    rows = [answered(n, prefill_ms=3.6e6, vision_ms=0.0, prune_ms=0.0, generate_ms=0.0) for n in range(4)]
    on_cpu = write_run(str(tmp_path / "cpu"), rows)
    on_gpu = write_run(str(tmp_path / "gpu"), [row | {"device": "cuda:0"} for row in rows])
    assert "No row says that it ran on a GPU, so there is no price." in report(on_cpu, price=2.5).text
    page = report(on_gpu, price=2.5)
    assert "model busy 4.00 h" in page.text
    assert "GPU busy, price $10.00" in page.text
    assert "model held, 2 workers 0.033 h" in page.text
    assert "With --usd-per-gpu-hour" in report(on_gpu).text


def test_samples_that_are_none_are_passed_over(tmp_path):
    folder = join(write_run(str(tmp_path), [answered(0)]), "samples")
    for name, data in {
        "a.json": b"no json",
        "b.json": b'{"format": 1}',
        "c.json": b"[]",
        "d.json": b'{"format": 99}',
        "e.webp": b"RIFF",
        "f.json": b"\xff\xfe",
    }.items():
        write_atomic(join(folder, name), data)
    assert list(read_samples(folder, 6)) == []
    assert "No sample pictures lie in the folder of the run." in report(str(tmp_path)).text


def invoke(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_the_command_writes_a_file(place):
    write_run(place, [answered(0)])
    out = join(place, "reports", "one.html")
    result = invoke(place, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"report  {out} (0.0")
    assert html.unescape(read_bytes(out).decode()).startswith("<!doctype html>")


def test_the_command_names_mistakes(tmp_path):
    write_run(str(tmp_path / "out"), [answered(0)])
    (tmp_path / "out" / "results" / "run_date=2026-11-22" / f"{RUN_A}-shard-00009.parquet").write_bytes(b"no parquet")
    for place, message in [
        (tmp_path / "nowhere", "there is no run here"),
        (tmp_path / "out" / "runs" / "nothing", "there is no run here"),
        (tmp_path / "out", f"the results of {RUN_A} cannot be read"),
    ]:
        result = invoke(str(place), "--out", str(tmp_path / "x.html"))
        assert result.exit_code == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "x.html").exists()


def test_a_run_folder_without_a_plan_is_none(tmp_path):
    (tmp_path / "runs" / RUN_A).mkdir(parents=True)
    with pytest.raises(UserError, match="the run never began"):
        find_run(str(tmp_path / "runs" / RUN_A))


def test_short_durations_are_written_out():
    assert [seconds(value) for value in (3.5e-7, 9.6e-6, 1.234e-4, 7e-4, 0.00123)] == [
        *("0.35 µs", "10 µs", "123 µs", "700 µs", "1.2 ms")
    ]
