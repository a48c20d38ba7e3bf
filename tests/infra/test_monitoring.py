"""Dashboard and alerts: they name what exists, and alerts fire when they should and not else."""

import shutil
import subprocess

import pytest
import yaml

from pipeline.metric_table import LABEL_VALUES
from tests.infra.files import cluster, load, pod_templates, rendered
from tests.infra.panels import dashboard, mistakes, panels, rules

PROMTOOL = shutil.which("promtool")
with_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="no promtool here: names and labels are checked, not alerts"
)
LEFT = 'ray_hieravid_rows_left{job_name="night", WorkerId="%s"}'
ROWS = 'ray_hieravid_rows_total{job_name="night", status="%s"}'
SHARDS = 'ray_hieravid_shards_committed_total{job_name="night"}'


@pytest.mark.parametrize(("title", "query"), panels())
def test_a_panel_names_metrics_and_labels_that_exist(title, query):
    assert mistakes(query) == []


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_names_metrics_and_labels_that_exist(rule):
    assert mistakes(rule["expr"]) == []
    assert set(rule["annotations"]) == {"summary", "description"}


def test_a_name_that_does_not_exist_is_found():
    assert mistakes("sum by (job_name) (ray_hieravid_row_total)") == ["ray_hieravid_row_total", "job_name"]
    assert mistakes('ray_hieravid_rows_left{stage="decode"}') == ["stage"]


def test_the_dashboard_can_be_laid_out_and_asks_the_chosen_prometheus():
    board = dashboard()
    taken = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert [one["name"] for one in board["templating"]["list"]] == ["datasource", "job"]
    selected = {value for _, query in panels() for value in LABEL_VALUES if f"{value}=" in query}
    assert {"job_name", "status", "stage", "pool"} <= selected


def test_the_pod_monitor_finds_every_pod_of_the_cluster_at_rays_exporter():
    monitor = load("monitoring/podmonitor.yaml")
    labels = monitor["spec"]["selector"]["matchLabels"]
    spec = cluster()["spec"]
    for name in ("head", *(group["groupName"] for group in spec["workerGroupSpecs"])):
        template = pod_templates()[name]
        assert labels.items() <= template["metadata"]["labels"].items()
        ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports
    assert monitor["metadata"]["namespace"] == cluster()["metadata"]["namespace"]


def test_kustomize_hands_the_dashboard_to_grafana():
    [configured] = [one for one in rendered("monitoring") if one["kind"] == "ConfigMap"]
    assert configured["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert yaml.safe_load(configured["data"]["dashboard.json"]) == dashboard()


CASES = {
    "a run that goes well": (
        {LEFT % "a": "1000-10x95", ROWS % "ok": "0+10x95", SHARDS: "0+1x95"},
        90,
        set(),
    ),
    "no row for a while": (
        {LEFT % "a": "1000-10x20 800x40", ROWS % "ok": "0+10x20 200x40"},
        40,
        {"HieravidStandsStill"},
    ),
    "a start that has not had a row yet": ({LEFT % "a": "1000x10"}, 10, set()),
    "a driver that died": ({LEFT % "a": "1000-10x20 stale"}, 40, {"HieravidDriverGone"}),
    "a driver that was done": ({LEFT % "a": "200-10x20 stale"}, 40, set()),
    "a driver that died, and another that did the rest": (
        {LEFT % "a": "200-10x10 stale", LEFT % "b": "_x15 100-10x10 stale"},
        50,
        set(),
    ),
    "rows that are never committed": (
        {LEFT % "a": "9000-10x150", ROWS % "ok": "0+10x150", SHARDS: "0x150"},
        150,
        {"HieravidNothingCommitted"},
    ),
    "many rows fail": (
        {LEFT % "a": "1000-10x60", ROWS % "ok": "0+9x60", ROWS % "error": "0+1x60", SHARDS: "0+1x60"},
        50,
        {"HieravidManyRowsFail"},
    ),
    "few rows fail": (
        {LEFT % "a": "6000-100x60", ROWS % "ok": "0+98x60", ROWS % "error": "0+2x60", SHARDS: "0+1x60"},
        50,
        set(),
    ),
    "a start that never came to a row": (
        {'kuberay_job_deployment_status{namespace="hieravid", name="hieravid-1", deployment_status="Failed"}': "1x10"},
        5,
        {"HieravidJobFailed"},
    ),
}


@with_promtool
@pytest.mark.parametrize("case", CASES)
def test_alerts_fire_when_they_should_and_not_else(case, tmp_path):
    """`CASES` give a series of values, one a minute, the minute that is looked at, and which alerts fire then."""
    series, minute, expected = CASES[case]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": load("monitoring/rules.yaml")["spec"]["groups"]}))
    # One instant query in the place of alert_rule_test, which wants each label and text of an alert.
    fired = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)]
    asked = {"expr": 'max by (alertname) (ALERTS{alertstate="firing"})', "eval_time": f"{minute}m"}
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [asked | {"exp_samples": fired}],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    done = subprocess.run([PROMTOOL, "test", "rules", "test.yaml"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
