"""The queries of the dashboard and the alerts, and the metrics that they may name."""

from __future__ import annotations

import json
import re

from pipeline.metric_table import METRICS
from tests.infra.files import INFRA, load

OURS = {metric.name: set(metric.labels) for metric in METRICS if metric.kind != "histogram"}
OURS |= {f"{metric.name}_bucket": {*metric.labels, "le"} for metric in METRICS if metric.kind == "histogram"}
OTHERS = {
    "ray_data_operator_queued_blocks": {"operator"},
    "ray_data_num_alive_actors": {"operator"},
    "ray_object_store_memory": {"Location"},
    "kuberay_job_deployment_status": {"name", "namespace", "deployment_status"},
}
KNOWN = OURS | OTHERS


def dashboard() -> dict:
    return json.loads((INFRA / "monitoring" / "dashboard.json").read_text())


def panels() -> list[tuple[str, str]]:
    """Title and query of each target of a panel, for all jobs."""
    return [
        (panel["title"], target["expr"].replace("$job", ".*"))
        for panel in dashboard()["panels"]
        for target in panel["targets"]
    ]


def rules() -> list[dict]:
    [group] = load("monitoring/rules.yaml")["spec"]["groups"]
    return group["rules"]


def mistakes(query: str) -> list[str]:
    """What a query names that does not exist: metrics, and labels of those that it names."""
    used = set(re.findall(r"\b(?:ray|kuberay)_\w+", query))
    wrong = sorted(used - set(KNOWN))
    labels = set().union(*(KNOWN.get(name, set()) for name in used))
    for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
        wrong += sorted(set(grouped.split(", ")) - labels)
    for name, selected in re.findall(r"(\w+)\{([^}]*)\}", query):
        wrong += sorted(set(re.findall(r'(\w+)=~?"', selected)) - KNOWN.get(name, set()))
    return wrong if used else [f"no metric in {query}"]
