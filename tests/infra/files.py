"""The files of infra/ as data, and what they refer to."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
KUBERAY = INFRA / "kuberay"
SCHEMAS = ROOT.parent / "shared" / "schemas"


def load(path: str) -> Any:
    """The only YAML document of a file below infra/."""
    return yaml.safe_load((INFRA / path).read_text())


def files(*endings: str) -> list[Path]:
    """All of infra/ whose names end so."""
    return sorted(path for path in INFRA.rglob("*") if path.suffix in endings)


def constraint(package: str) -> str:
    """The version of a package that everything was tested with."""
    return re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def cluster() -> dict[str, Any]:
    return load("kuberay/base/raycluster.yaml")


def schedule() -> dict[str, Any]:
    """The RayCronJob with the cluster in it, as kustomize's replacement puts it there."""
    found = load("kuberay/nightly/raycronjob.yaml")
    found["spec"]["jobTemplate"]["rayClusterSpec"] = deepcopy(cluster()["spec"])
    return found


def job() -> dict[str, Any]:
    """The RayJob with the schedule's job in it."""
    return load("kuberay/once/rayjob.yaml") | {"spec": schedule()["spec"]["jobTemplate"]}


def pod_templates() -> dict[str, dict[str, Any]]:
    """Every pod that the manifests describe, by a name of ours."""
    spec = cluster()["spec"]
    groups = {"head": spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    return {name: group["template"] for name, group in groups.items()} | {
        "submitter": load("kuberay/nightly/raycronjob.yaml")["spec"]["jobTemplate"]["submitterPodTemplate"],
        "cronjob": load("kuberay/cronjob/cronjob.yaml")["spec"]["jobTemplate"]["spec"]["template"],
    }


def containers() -> list[dict[str, Any]]:
    return [one for template in pod_templates().values() for one in template["spec"]["containers"]]


def schema(name: str) -> dict[str, Any]:
    """KubeRay's schema of a custom resource, made strict: a key that it does not know is a mistake."""
    file = SCHEMAS / f"{name}.json"
    if not file.exists():
        pytest.skip(f"structure and references are checked, KubeRay's schema is not: there is no {file.name} here")
    return _strict(json.loads(file.read_text())["schema"])


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    strict = {key: _strict(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and "additionalProperties" not in node:
        strict["additionalProperties"] = False
    return strict


def rendered(folder: str) -> list[dict[str, Any]]:
    """What `kubectl kustomize` makes of a folder below infra/; skips where there is no kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here: what kustomize makes of the folders is not checked")
    done = subprocess.run(
        ["kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone", INFRA / folder],
        capture_output=True,
        text=True,
        check=True,
    )
    return list(yaml.safe_load_all(done.stdout))
