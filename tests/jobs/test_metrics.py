"""The metrics of a real job, scraped from the cluster's own exporter as Prometheus would."""

import time
import urllib.request
from collections import Counter

import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.config_load import load_config
from pipeline.metric_table import BOUNDS_S, BUSY_STAGES, LABEL_VALUES, METRICS, STAGE_COLUMNS
from pipeline.progress import Progress
from pipeline.run import run_job
from tests.jobs.engines import SlowEngine
from tests.video.samples import write_video

pytestmark = pytest.mark.usefixtures("ray_cluster")

JOB = "scraped-job"
PATIENCE_S = 40.0  # Ray exports every ten seconds
RAYS_OWN = ("ray_data_operator_queued_blocks", "ray_data_num_alive_actors", "ray_object_store_memory")


class Scrapes:
    """What the exporter of the cluster's only node has shown so far: the latest value of each series."""

    def __init__(self):
        import ray

        [node] = ray.nodes()
        self.url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        self.kinds = {}
        self.values = {}
        self.labels = {}

    def look(self):
        with urllib.request.urlopen(self.url, timeout=30) as reply:
            text = reply.read().decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith(RAYS_OWN):
                    self.values[sample.name] = sample.value
                if sample.labels.get("job_name", JOB) == JOB and "hieravid" in sample.name:
                    ours = {name: value for name, value in sample.labels.items() if name in LABEL_VALUES}
                    bound = {"le": sample.labels["le"]} if "le" in sample.labels else {}
                    self.kinds[sample.name] = family.type
                    self.labels[sample.name] = tuple(sorted(ours))
                    self.values[sample.name, *(ours | bound).values()] = sample.value

    def of(self, name: str) -> dict[tuple[str, ...], float]:
        """The values of a metric by its labels but the job's name, in the order of their names."""
        return {
            tuple(value for value in key[1:] if value != JOB): value
            for key, value in self.values.items()
            if isinstance(key, tuple) and key[0] == name
        }


def test_the_exporter_shows_every_metric_with_the_values_of_the_result_files(tmp_path, write_manifest):
    video = str(write_video(tmp_path / "a.mp4", frames=8))
    rows = [{"uri": video, "question": f"q{n % 2}", "start_s": 0.01 * (n // 2)} for n in range(50)]
    rows += [{"uri": str(tmp_path / "none.mp4"), "question": "q"}, {"uri": "ftp://a/b.mp4", "question": "q"}]
    given = [f"manifest={write_manifest(rows)}", f"output={tmp_path}/out", f"name={JOB}", "cluster.rows_per_shard=10"]
    given += ["cluster.decoders=1", "cluster.batch_size=2", "failures.max_failed_share=0.5"]
    scrapes = Scrapes()
    told: list[Progress] = []

    def watch(now: Progress) -> None:
        told.append(now)
        if now.phase == "answer":
            scrapes.look()

    summary = run_job(load_config(None, given, "qa"), watch, SlowEngine)
    found = [
        row for file in (tmp_path / "out" / "results").rglob("*.parquet") for row in pq.read_table(file).to_pylist()
    ]
    assert (summary.rows, len(found)) == (52, 52)
    until = time.monotonic() + PATIENCE_S
    while sum(scrapes.of("ray_hieravid_rows_total").values()) < 52 and time.monotonic() < until:
        time.sleep(1.0)
        scrapes.look()

    for metric in METRICS:
        name = f"{metric.name}_count" if metric.kind == "histogram" else metric.name
        assert scrapes.labels[name] == tuple(sorted(metric.labels))
        assert scrapes.kinds[name] == metric.kind
    for name in RAYS_OWN:
        assert name in scrapes.values

    outcomes = Counter((row["error_code"] or "", row["error_stage"] or "", row["status"], "qa") for row in found)
    assert scrapes.of("ray_hieravid_rows_total") == outcomes
    assert set(outcomes) == {
        ("", "", "ok", "qa"),
        ("not_found", "fetch", "error", "qa"),
        ("uri_scheme", "manifest", "error", "qa"),
    }
    assert scrapes.of("ray_hieravid_rows_left") == {(): 0}
    assert scrapes.of("ray_hieravid_shards_committed_total") == {(): summary.shards}
    assert scrapes.of("ray_hieravid_video_tokens_total") == {(): summary.video_tokens} == {(): 5_000}
    assert scrapes.of("ray_hieravid_kept_tokens_total") == {(): pytest.approx(summary.kept_tokens)}
    assert scrapes.of("ray_hieravid_output_tokens_total") == {(): summary.output_tokens}
    groups = {(row["uri"], row["started_at"]): row["bytes_fetched"] or 0 for row in found}
    assert scrapes.of("ray_hieravid_fetched_bytes_total") == {(): sum(groups.values())}

    for stage, column in STAGE_COLUMNS.items():
        seconds = [row[column] / 1e3 for row in found if row[column] is not None]
        assert seconds
        assert scrapes.of("ray_hieravid_stage_seconds_count")[(stage,)] == len(seconds)
        for bound in BOUNDS_S:
            below = scrapes.of("ray_hieravid_stage_seconds_bucket")[stage, str(bound)]
            assert below == sum(value <= bound for value in seconds), (stage, bound)
        if stage in BUSY_STAGES and sum(seconds):
            assert scrapes.of("ray_hieravid_busy_seconds_total")[(stage,)] == pytest.approx(sum(seconds))

    assert scrapes.of("ray_hieravid_workers") == {("decoders",): 1, ("answerers",): 1}
    shares = scrapes.of("ray_hieravid_busy_share")
    assert set(shares) == {("decoders",), ("answerers",)}
    assert all(0 <= share <= 1 for share in shares.values())
    requests = scrapes.of("ray_hieravid_answerer_requests")
    assert set(requests) == {("waiting",), ("running",)}
    assert all(0 <= count <= 4 for count in requests.values())  # two videos of two questions each
    last = [now for now in told if now.phase == "answer"][-1]
    assert last.decoders_busy is not None
    assert last.answerers_busy is not None
