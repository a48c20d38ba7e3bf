"""The task of our own clips, the table, and with lmms-eval installed a whole run of both."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.evaluate import lmms_clips, lmms_run
from pipeline.evaluate.lmms_clips import CHOICE_TASK, TASK, ask, letters, right_place, score, show_video, write_tasks
from pipeline.evaluate.lmms_run import BenchmarkJob, run_benchmarks
from pipeline.evaluate.lmms_table import BenchmarkScore, benchmark_markdown, write_benchmarks
from pipeline.evaluate.origin import Origin
from pipeline.evaluate.variants import parse_variant

ROWS = [
    {"uri": "videos/7.mp4", "question": "what color is the circle", "kind": "colour", "reference": "red"},
    {"uri": "videos/7.mp4", "question": "which", "options": ["a", "b", "c"], "kind": "which", "reference": "B"},
]


class FunctionNames(yaml.SafeLoader):
    """Reads `!function name` as the name."""


FunctionNames.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """The folder of the two tasks, its questions given instead of rendered."""

    def written(seeds, out, cache):
        out.mkdir()
        (out / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    monkeypatch.setattr(lmms_clips, "write_dataset", written)
    write_tasks([7], tmp_path / "it's here")
    return tmp_path / "it's here"


def documents(folder, task):
    config = yaml.load((folder / f"{task}.yaml").read_text(), FunctionNames)
    path = Path(config["dataset_kwargs"]["data_files"]["test"])
    return config, [json.loads(line) for line in path.read_text().splitlines()]


def test_each_question_becomes_a_document_that_names_its_video_file(tasks):
    config, docs = documents(tasks, TASK)
    assert (config["task"], config["output_type"], config["test_split"]) == (TASK, "generate_until", "test")
    assert [show_video(doc) for doc in docs] == [[str(tasks / "videos" / "7.mp4")]] * 2
    assert [ask(doc).splitlines()[0] for doc in docs] == ["what color is the circle", "which"]
    assert ask(docs[1]).splitlines()[1:4] == ["A. a", "B. b", "C. c"]


def test_the_choice_task_holds_the_lettered_questions_alone(tasks):
    config, docs = documents(tasks, CHOICE_TASK)
    assert (config["output_type"], len(docs)) == ("multiple_choice", 1)
    assert letters(docs[0]) == ["A", "B", "C"]
    assert right_place(docs[0]) == 1


def test_every_function_that_a_task_names_is_there(tasks):
    for task in (TASK, CHOICE_TASK):
        named = [v for v in documents(tasks, task)[0].values() if str(v).startswith("pipeline.")]
        assert len(named) >= 3
        assert all(callable(getattr(lmms_clips, name.rpartition(".")[2])) for name in named)
        assert {name.rpartition(".")[0] for name in named} == {lmms_clips.__name__}


def test_an_answer_scores_if_it_is_the_reference_word_for_word():
    assert score({"reference": "red"}, [" red\n"]) == {"accuracy": 1.0}
    assert score({"reference": "red"}, ["red circle"]) == {"accuracy": 0.0}


def test_the_table_shows_scores_and_shares_of_the_unpruned_ones():
    measured = {"questions": 10, "failed": 0, "kv_ratio": 0.5, "prefill_ms": 1.0}
    scores = [
        BenchmarkScore("one", "none", 1.0, score=0.8, retention_achieved=1.0, flops_ratio=1.0, **measured),
        BenchmarkScore("one", "fastv", 0.3, score=0.6, retention_achieved=0.3, flops_ratio=0.2, **measured),
        BenchmarkScore("one", "fastv", 0.1, minimum=0.127),
        BenchmarkScore("two", "none", 1.0, score=62.0, retention_achieved=1.0, flops_ratio=1.0, **measured),
        BenchmarkScore("two", "fastv", 0.3, score=31.0, retention_achieved=0.32, flops_ratio=0.3, **measured),
        BenchmarkScore("two", "fastv", 0.1, minimum=0.127),
    ]
    lines = benchmark_markdown(scores).splitlines()
    assert lines[0] == "| method | at | retention | FLOPs | one (share) | two (share) | mean share |"
    assert lines[2:] == [
        "| none | 1 | 1.000 | 1.000 | 0.8 (100.0) | 62 (100.0) | 100.0 |",
        "| fastv | 0.3 | 0.310 | 0.250 | 0.6 (75.0) | 31 (50.0) | 62.5 |",
        "| fastv | 0.1 |  |  | unreachable (from 0.127) | unreachable (from 0.127) |  |",
    ]


def test_the_table_tells_of_videos_that_could_not_be_decoded():
    table = benchmark_markdown([BenchmarkScore("one", "none", 1.0, score=0.0, questions=4, failed=3)])
    assert table.endswith("3 questions had a video that could not be decoded.")
    assert "| 0 |" in table  # a share of nothing is no number


def test_the_written_table_says_where_it_comes_from(tmp_path):
    scores = [BenchmarkScore("one", "none", 1.0, score=0.8)]
    table = write_benchmarks(scores, tmp_path / "out", Origin("2026-11-22", "a GPU", "abc1234", "the command"))
    assert (tmp_path / "out" / "table.md").read_text() == (
        f"{table}\n\na GPU, 2026-11-22, commit abc1234: `the command`\n"
    )


def job(out, *methods, tasks=(TASK, CHOICE_TASK), **settings) -> BenchmarkJob:
    variants = tuple(parse_variant(method) for method in methods)
    return BenchmarkJob("builtin:tiny", tasks, variants, (0.3,), out, device="cpu", clips=2, **settings)


@pytest.mark.skipif(bool(find_spec("lmms_eval")), reason="lmms-eval is installed")
def test_without_lmms_eval_the_way_to_it_is_named(tmp_path):
    with pytest.raises(UserError, match="make lmms"):
        run_benchmarks(job(tmp_path, "uniform"), print)


class TestWithLmmsEval:
    """Runs lmms-eval's evaluator."""

    @pytest.fixture(autouse=True)
    def lmms_eval(self, monkeypatch, tmp_path):
        pytest.importorskip("lmms_eval", reason="lmms-eval has an environment of its own: make lmms")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "datasets"))

    def test_a_table_is_run_once_and_then_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr(lmms_run, "code_version", lambda: "as it was")  # also where somebody edits meanwhile
        reported = []
        asked = job(tmp_path, "uniform", "none", batch_size=2)
        first = run_benchmarks(asked, reported.append)
        assert [(s.task, s.method, s.retention) for s in first] == [
            (task, method, retention)
            for task in (TASK, CHOICE_TASK)
            for method, retention in (("none", 1.0), ("uniform", 0.3))
        ]
        assert all(s.failed == 0 and 0 <= s.score <= 1 for s in first)
        assert [s.questions for s in first[:2]] == [10, 10]
        assert first[1].retention_achieved == pytest.approx(0.3, abs=0.02)
        assert len(reported) == 4
        assert run_benchmarks(asked, reported.append) == first
        assert len(reported) == 4

    def test_unknown_tasks_are_named_with_the_nearest(self, tmp_path):
        with pytest.raises(UserError, match="no task 'videomm'; did you mean 'videomme'"):
            run_benchmarks(job(tmp_path, tasks=("videomm",)), print)

    def test_the_oracle_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="no oracle"):
            run_benchmarks(job(tmp_path, "oracle"), print)
