"""The Kubernetes manifests: KubeRay's schemas where they are, and what they refer to everywhere."""

import importlib
import shlex
from datetime import datetime
from importlib import metadata
from zoneinfo import ZoneInfo

import jsonschema
import pytest
import yaml
from typer.main import get_command

from jobs.hieravid import COMMANDS
from pipeline.config_load import load_config
from pipeline.pools import most
from tests.infra.files import (
    INFRA,
    KUBERAY,
    ROOT,
    cluster,
    constraint,
    containers,
    files,
    job,
    load,
    pod_templates,
    rendered,
    schedule,
    schema,
)

JOB_FILE = "/etc/hieravid/nightly-caption.yaml"
CONFIG = ROOT / "configs" / "nightly-caption.yaml"


def groups():
    return {group["groupName"]: group for group in cluster()["spec"]["workerGroupSpecs"]}


def limits(name: str) -> dict[str, str]:
    [container] = pod_templates()[name]["spec"]["containers"]
    return container["resources"]["limits"]


@pytest.mark.parametrize("path", files(".yaml"), ids=lambda path: str(path.relative_to(INFRA)))
def test_every_file_is_one_yaml_document(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize(("name", "make"), [("rayclusters", cluster), ("raycronjobs", schedule), ("rayjobs", job)])
def test_kuberays_schema_takes_them(name, make):
    jsonschema.Draft202012Validator(schema(name)).validate(make())


@pytest.mark.parametrize(("folder", "kind"), [("nightly", "RayCronJob"), ("once", "RayJob"), ("cronjob", "RayCluster")])
def test_kustomize_puts_the_one_cluster_where_it_belongs(folder, kind):
    made = {one["kind"]: one for one in rendered(f"kuberay/{folder}")}
    assert {"Namespace", "ServiceAccount", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget", kind} <= set(made)
    assert len({"RayCronJob", "RayJob", "RayCluster"} & set(made)) == 1
    assert {one["metadata"].get("namespace") for one in made.values() if one["kind"] != "Namespace"} == {"hieravid"}

    component = load("kuberay/image/kustomization.yaml")["images"]
    images = {one["name"]: f"{one['newName']}:{one['newTag']}" for one in component}
    expected = {"RayCronJob": schedule, "RayJob": job, "RayCluster": cluster}[kind]()["spec"]
    assert with_images(expected, images) == made[kind]["spec"]
    assert made["ConfigMap"]["data"] == {"nightly-caption.yaml": CONFIG.read_text()}
    if folder == "cronjob":
        assert with_images(load("kuberay/cronjob/cronjob.yaml")["spec"], images) == made["CronJob"]["spec"]


def with_images(node, images):
    if isinstance(node, list):
        return [with_images(one, images) for one in node]
    if not isinstance(node, dict):
        return node
    return {key: images[value] if key == "image" else with_images(value, images) for key, value in node.items()}


def test_images_have_the_name_and_the_tag_of_this_version():
    known = {one["name"]: one for one in load("kuberay/image/kustomization.yaml")["images"]}
    assert {one["image"] for one in containers()} == set(known) == {"hieravid", "hieravid-cuda"}
    version = metadata.version("hieravid")
    assert {one["newTag"] for one in known.values()} == {version}
    for folder in ("nightly", "cronjob"):
        assert load(f"kuberay/{folder}/kustomization.yaml")["components"] == ["../image"]


def test_ray_is_the_version_that_everything_is_tested_with():
    assert cluster()["spec"]["rayVersion"] == constraint("ray")


def test_the_entrypoint_is_a_command_and_its_job_file_is_mounted_on_the_head():
    python, _, module, option, path = shlex.split(schedule()["spec"]["jobTemplate"]["entrypoint"])
    assert (python, module, option, path) == ("python", "jobs.caption", "--config", JOB_FILE)
    assert "--config" in options(module)
    assert mounts("head")["/etc/hieravid"]["configMap"] == {"name": "hieravid-job"}
    [generator] = load("kuberay/base/kustomization.yaml")["configMapGenerator"]
    name, _, source = generator["files"][0].partition("=")
    assert (generator["name"], f"/etc/hieravid/{name}") == ("hieravid-job", JOB_FILE)
    assert (KUBERAY / "base" / source).resolve() == CONFIG


def options(module: str) -> set[str]:
    return {word for one in get_command(importlib.import_module(module).app).params for word in one.opts}


def mounts(name: str) -> dict[str, dict]:
    """What lies at each path of a pod's container."""
    spec = pod_templates()[name]["spec"]
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    [container] = spec["containers"]
    return {one["mountPath"]: volumes[one["name"]] for one in container.get("volumeMounts", [])}


def test_the_cronjob_sends_the_job_to_the_standing_cluster():
    [container] = pod_templates()["cronjob"]["spec"]["containers"]
    program, command, task = container["command"]
    assert (program, task) == ("hieravid", load_config(CONFIG).task)
    assert command in COMMANDS
    given = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    assert given == {"--config": JOB_FILE, "--address": f"http://{cluster()['metadata']['name']}-head-svc:8265"}
    assert set(given) <= options("jobs.submit")
    assert mounts("cronjob")["/etc/hieravid"]["configMap"] == {"name": "hieravid-job"}
    [token] = [one["valueFrom"] for one in container["env"] if "valueFrom" in one]
    assert token == {"secretKeyRef": {"name": cluster()["metadata"]["name"], "key": "auth_token"}}
    assert cluster()["spec"]["authOptions"] == {"mode": "token"}


def test_only_what_a_second_start_can_mend_is_tried_again():
    assert schedule()["spec"]["jobTemplate"]["backoffLimit"] == 0
    spec = load("kuberay/cronjob/cronjob.yaml")["spec"]
    [rule] = spec["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "In")
    assert rule["onExitCodes"]["values"] == [1, 2, 130]
    assert rule["onExitCodes"]["containerName"] == pod_templates()["cronjob"]["spec"]["containers"][0]["name"]
    assert spec["concurrencyPolicy"] == "Forbid"


def test_nights_do_not_overlap_and_both_schedules_mean_the_same_hour():
    nightly, plain = schedule()["spec"], load("kuberay/cronjob/cronjob.yaml")["spec"]
    assert (nightly["schedule"], nightly["timeZone"]) == (plain["schedule"], plain["timeZone"])
    minute, hour, *every = nightly["schedule"].split()
    assert every == ["*"] * 3
    assert datetime(2026, 11, 22, int(hour), int(minute), tzinfo=ZoneInfo(nightly["timeZone"]))
    asked = nightly["jobTemplate"]
    longest = asked["activeDeadlineSeconds"] + asked["ttlSecondsAfterFinished"]
    assert longest < 24 * 3600
    assert asked["shutdownAfterJobFinishes"]


def test_the_pools_have_room_for_what_the_job_file_asks_for():
    asked = load_config(CONFIG).cluster
    room = {name: group["maxReplicas"] * int(limits(name)["cpu"]) for name, group in groups().items()}
    gpus = groups()["answerers"]["maxReplicas"] * int(limits("answerers")["nvidia.com/gpu"])
    assert gpus >= most(asked.answerers) * asked.gpus_per_answerer
    assert sum(room.values()) >= most(asked.decoders) + most(asked.answerers)
    # Without answerers' nodes, those of decoders alone still hold all decoders.
    assert room["decoders"] + room["decoders-spot"] >= most(asked.decoders)
    for name, group in groups().items():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], name


def test_the_head_takes_no_work_and_stays_while_spot_nodes_come_and_go():
    spec = cluster()["spec"]
    assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert spec["enableInTreeAutoscaling"]
    kinds = {name: one["spec"].get("nodeSelector", {}) for name, one in pod_templates().items()}
    capacity = {name: one["karpenter.sh/capacity-type"] for name, one in kinds.items() if one}
    assert capacity == {
        "head": "on-demand",
        "decoders": "on-demand",
        "decoders-spot": "spot",
        "answerers": "on-demand",
    }
    assert groups()["decoders-spot"]["priority"] > groups()["decoders"].get("priority", 0)
    budget = load("kuberay/base/disruption.yaml")["spec"]
    labels = pod_templates()["head"]["metadata"]["labels"] | {"ray.io/node-type": "head"}
    assert budget["selector"]["matchLabels"].items() <= labels.items()


def test_shared_memory_holds_rays_object_store():
    gib = {name: int(limits(name)["memory"].removesuffix("Gi")) for name in ("head", *groups())}
    for name, memory in gib.items():
        volume = mounts(name)["/dev/shm"]["emptyDir"]
        assert volume["medium"] == "Memory"
        assert 0.3 * memory <= int(volume["sizeLimit"].removesuffix("Gi")) < memory, name
        assert "emptyDir" in mounts(name)["/cache"]


def test_no_container_has_privileges_and_all_say_what_they_take():
    for name, template in pod_templates().items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["runAsUser"] == 1000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["restartPolicy"] == "Never"
    for container in containers():
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert set(container["resources"]) == {"requests", "limits"}
    assert cluster()["spec"]["autoscalerOptions"]["securityContext"] == containers()[0]["securityContext"]
    labels = load("kuberay/base/namespace.yaml")["metadata"]["labels"]
    assert labels == {"pod-security.kubernetes.io/enforce": "restricted"}


def test_secrets_are_referred_to_and_none_is_here():
    for container in containers():
        for one in container.get("env", []):
            assert "valueFrom" in one or one["name"] in ("HIERAVID_CACHE", "RAY_AUTH_MODE"), one["name"]
        assert all("secretRef" in one for one in container.get("envFrom", []))
    named = {one["secretRef"]["name"] for container in containers() for one in container.get("envFrom", [])}
    assert named == {"hieravid-credentials"}
    assert "Secret" not in {load(str(path.relative_to(INFRA))).get("kind") for path in files(".yaml")}
    account = load("kuberay/base/account.yaml")["metadata"]["name"]
    used = {one["spec"].get("serviceAccountName") for one in pod_templates().values()}
    assert used == {account, None}  # None: the submitter, which reads nothing but the job's log


def test_ports_are_those_of_ray_and_kuberay():
    from ray._private.ray_constants import DEFAULT_DASHBOARD_PORT, DEFAULT_PORT

    head = {port["name"]: port["containerPort"] for port in containers()[0]["ports"]}
    assert head == {"gcs-server": DEFAULT_PORT, "dashboard": DEFAULT_DASHBOARD_PORT, "metrics": 8080}
    for name in groups():
        [container] = pod_templates()[name]["spec"]["containers"]
        assert container["ports"] == [{"name": "metrics", "containerPort": 8080}]
    rules = load("kuberay/base/network.yaml")["spec"]["ingress"]
    assert [port["port"] for rule in rules for port in rule.get("ports", [])] == [DEFAULT_DASHBOARD_PORT, 8080]
