import re
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import metrics
from pipeline.collector import Collector
from pipeline.config_load import load_config
from pipeline.errors import ERROR_CODES
from pipeline.metric_table import (
    ANSWERER_REQUESTS,
    BOUNDS_S,
    BUSY_SECONDS,
    BUSY_SHARE,
    FETCHED_BYTES,
    KEPT_TOKENS,
    LABEL_VALUES,
    METRICS,
    OUTPUT_TOKENS,
    ROWS,
    ROWS_LEFT,
    SHARDS,
    STAGE_SECONDS,
    VIDEO_TOKENS,
)
from pipeline.metrics import RunMetrics, request_gauge
from pipeline.plan import plan_run
from pipeline.results import blank_row
from pipeline.watch import Watch

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
DOCUMENT = (Path(__file__).parents[2] / "infra" / "metrics.md").read_text()
QUERIES = re.findall(r"```promql\n(.+?)```", DOCUMENT, re.DOTALL)
LABELS_OF_RAY = {"le", "operator"}


class Recorded:
    """In the place of Ray's objects: what each metric was told."""

    def __init__(self, monkeypatch):
        self.told = {}
        monkeypatch.setattr(metrics, "instrument", self.instrument)

    def instrument(self, metric):
        def take(value, tags):
            assert set(tags) == set(metric.labels)
            self.told.setdefault((metric, *list(tags.values())), []).append(value)

        return SimpleNamespace(inc=take, set=take, observe=take)


@pytest.fixture
def recorded(monkeypatch):
    return Recorded(monkeypatch)


def answered(started_at=NOON, **given):
    row = {"status": "ok", "started_at": started_at, "video_tokens": 100, "retention_achieved": 0.3, "output_tokens": 7}
    return blank_row("item") | row | {"bytes_fetched": 1_000, "decode_ms": 500.0, "total_ms": 2_000.0} | given


def test_rows_are_summed_and_each_sum_is_exported_once(recorded):
    run = RunMetrics("night", "qa")
    run.observe([answered(), answered(), answered(NOON + timedelta(seconds=1), bytes_fetched=None)])
    run.count({("ok", "", ""): 3}, rows_left=7, shards=0)
    run.export({(BUSY_SHARE, "decoders"): 0.25})
    run.observe([blank_row("failed") | {"status": "error", "started_at": NOON, "fetch_ms": 40.0}])
    run.count({("ok", "", ""): 3, ("error", "fetch", "not_found"): 1}, rows_left=6, shards=2)
    run.export({(BUSY_SHARE, "decoders"): 0.5})
    run.export({})
    assert recorded.told == {
        (ROWS, "night", "qa", "ok", "", ""): [3],
        (ROWS, "night", "qa", "error", "fetch", "not_found"): [1],
        (ROWS_LEFT, "night"): [7, 6, 6],
        (SHARDS, "night"): [2],
        (VIDEO_TOKENS, "night"): [300],
        (KEPT_TOKENS, "night"): [90.0],
        (OUTPUT_TOKENS, "night"): [21],
        (FETCHED_BYTES, "night"): [1_000],
        (BUSY_SECONDS, "night", "decode"): [1.5],
        (BUSY_SECONDS, "night", "fetch"): [0.04],
        (STAGE_SECONDS, "night", "decode"): [0.5] * 3,
        (STAGE_SECONDS, "night", "total"): [2.0] * 3,
        (STAGE_SECONDS, "night", "fetch"): [0.04],
        (BUSY_SHARE, "night", "decoders"): [0.25, 0.5],
    }


def test_without_ray_an_answerer_tells_nobody_and_imports_nothing():
    code = """
import sys
from pipeline.answer_stream import AnswerStream
AnswerStream(None, None)._tell_load(3, 1)
assert "ray" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_an_answerer_tells_its_requests_now_and_then_and_always_when_it_has_none(recorded, monkeypatch):
    clock = iter([10.0, 10.1, 11.2, 11.3])
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    tell = request_gauge()
    for waiting, running in [(5, 1), (4, 2), (3, 2), (0, 0)]:
        tell(waiting, running)
    assert recorded.told == {
        (ANSWERER_REQUESTS, "waiting"): [5, 3, 0],
        (ANSWERER_REQUESTS, "running"): [1, 2, 0],
    }


def a_collector():
    return SimpleNamespace(rows=0, failed=0, total=100, outcomes={})


def test_progress_names_the_stage_that_limits_the_run(monkeypatch):
    seconds = iter([100.0, 110.0])
    monkeypatch.setattr("pipeline.watch.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr("pipeline.watch._alive", lambda: {})
    collector = a_collector()
    watch = Watch("night", "qa", collector)
    with watch.exporting(SimpleNamespace(decoders=(1, 2), answerers=1)):
        first = watch.moment()
        assert (first.rows_per_s, first.decoders_busy, first.limited_by) == (None, None, None)
        collector.rows = 20
        watch.add([answered(decode_ms=900.0, fetch_ms=100.0, vision_ms=100.0, generate_ms=50.0)] * 20)
        now = watch.moment("careful")
    assert (now.rows, now.rows_per_s, now.remaining_s, now.note) == (20, 2.0, 40.0, "careful")
    assert (now.decoders_busy, now.answerers_busy) == (pytest.approx(0.9), pytest.approx(0.3))
    assert now.limited_by == "decoding"


def test_what_came_from_no_worker_is_counted_when_its_shard_is_committed(write_jsonl, tmp_path):
    rows = [{"uri": "/videos/a.mp4"}, {"uri": "/videos/b.mp4"}, {"uri": "ftp://host/c.mp4"}]
    given = [f"manifest={write_jsonl(*rows)}", f"output={tmp_path}/out"]
    plan = plan_run(load_config(None, given, "caption"), "run-1", "f" * 12, NOON)
    collector = Collector([(plan, shard) for shard in plan.shards])
    assert collector.outcomes == {}
    [_] = collector.commit_rest()
    assert collector.outcomes == {("error", "generate", "lost"): 2, ("error", "manifest", "uri_scheme"): 1}


def test_an_exporter_that_hangs_or_fails_does_not_keep_a_run_from_its_end(monkeypatch):
    monkeypatch.setattr("pipeline.watch._END_S", 0.05)
    monkeypatch.setattr("pipeline.watch._alive", lambda: 1 / 0)
    pools = SimpleNamespace(decoders=1, answerers=1)
    watch = Watch("night", "qa", a_collector())
    hangs = threading.Event()
    watch._metrics.export = lambda gauges: hangs.wait()
    with pytest.raises(SystemExit), watch.exporting(pools):
        raise SystemExit(143)
    hangs.set()
    watch._metrics.export = lambda gauges: 1 / 0
    with watch.exporting(pools):
        pass


def test_names_and_labels_are_those_that_prometheus_and_ray_take():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("ray_hieravid_")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert set(metric.labels) <= set(LABEL_VALUES)
        # Prometheus has labels of these names itself, and renames ours.
        assert not {"job", "instance"} & set(metric.labels)
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))
    stages = {stage for stage, _ in ERROR_CODES.values()}
    assert all(stage in LABEL_VALUES["error_stage"] for stage in stages)


def test_every_metric_is_documented_with_its_labels():
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        assert f"| `{metric.name}` | {metric.kind} | {labels} | {metric.unit} | {metric.meaning} |\n" in DOCUMENT
    for label, values in LABEL_VALUES.items():
        assert f"| `{label}` | {values} |\n" in DOCUMENT
    assert f"end at {', '.join(f'{bound:g}' for bound in BOUNDS_S)} seconds" in DOCUMENT


def test_every_metric_that_the_document_names_exists():
    named = set(re.findall(r"\bray_hieravid_\w+", DOCUMENT))
    known = {metric.name for metric in METRICS}
    known |= {f"{STAGE_SECONDS.name}_{suffix}" for suffix in ("bucket", "count", "sum")}
    assert named <= known


@pytest.mark.parametrize("query", QUERIES)
def test_the_queries_use_labels_that_their_metrics_have(query):
    used = set(re.findall(r"\b(ray_hieravid_\w+?)(?:_bucket)?\b", query))
    assert used
    labels = set.union(*(set(metric.labels) for metric in METRICS if metric.name in used)) | LABELS_OF_RAY
    for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
        assert set(grouped.split(", ")) <= labels
    for name, selected in re.findall(r"(\w+)\{([^}]*)\}", query):
        own = {label for metric in METRICS if metric.name == name for label in metric.labels} or LABELS_OF_RAY
        for label, values in re.findall(r'(\w+)=~?"([^"]*)"', selected):
            assert label in own
            if label in LABEL_VALUES:
                assert all(value in LABEL_VALUES[label].split(", ") for value in values.split("|"))
    assert query.count("(") == query.count(")")
