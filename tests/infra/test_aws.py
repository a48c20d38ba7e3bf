"""Ray's autoscaler file and the IAM policies."""

import json
import uuid

import jsonschema
import pytest
import yaml

from pipeline import conditional_write
from pipeline.errors import RowError, UserError
from pipeline.lease import LeaseTimes, hold_lease
from pipeline.listing import list_files
from pipeline.storage import check_readable, check_writable, delete, exists, fetch_video, read_bytes, write_atomic
from tests.infra.files import INFRA, ROOT, load

BUCKET = "infra-policy"  # moto keeps one state for all servers of a process, and others of its tests have an archive
POLICIES = ("archive-policy.json", "head-policy.json")


def policy(name: str) -> dict:
    return json.loads((INFRA / "aws" / name).read_text())


def test_rays_own_schema_takes_the_cluster():
    import ray.autoscaler

    schema = json.loads((ROOT / next(iter(ray.autoscaler.__path__)) / "ray-schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(load("aws/cluster.yaml"))


def test_the_cluster_runs_the_images_of_the_others():
    given = load("aws/cluster.yaml")
    images = {
        one["name"]: f"{one['newName']}:{one['newTag']}" for one in load("kuberay/image/kustomization.yaml")["images"]
    }
    types = given["available_node_types"]
    assert given["docker"]["image"] == images["hieravid"]
    assert types["answerers"]["docker"]["worker_image"] == images["hieravid-cuda"]
    assert types[given["head_node_type"]]["resources"] == {"CPU": 0}
    assert types["decoders-spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert all("IamInstanceProfile" in one["node_config"] for one in types.values())
    assert given["max_workers"] == sum(one.get("max_workers", 0) for one in types.values())
    head, worker = given["head_start_ray_commands"][-1], given["worker_start_ray_commands"][-1]
    assert "--port=6379" in head
    assert "$RAY_HEAD_IP:6379" in worker
    assert "--metrics-export-port=8080" in head
    assert "--metrics-export-port=8080" in worker
    assert "--dashboard-host=127.0.0.1" in head


@pytest.mark.parametrize("name", POLICIES)
def test_policies_name_each_action(name):
    for statement in policy(name)["Statement"]:
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert "*" not in action
        if statement["Resource"] == "*":
            assert "Condition" in statement or all(action.startswith("ec2:Describe") for action in actions)


def test_the_policy_is_for_the_job_files_places_and_the_cluster_of_the_autoscaler_file():
    job = yaml.safe_load((ROOT / "configs" / "nightly-caption.yaml").read_text())
    output = job["output"].removeprefix("s3://")
    resources = {one["Sid"]: one["Resource"] for one in policy("archive-policy.json")["Statement"]}
    assert resources["WriteRunsAndResults"] == f"arn:aws:s3:::{output}/*"
    assert resources["TakeBackTheTestOfWriting"] == f"arn:aws:s3:::{output}/.write-test-*"
    bucket = job["manifest"].removeprefix("s3://").partition("/")[0]
    assert resources["ReadThem"] == f"arn:aws:s3:::{bucket}/*"
    given = load("aws/cluster.yaml")
    head = {one["Sid"]: one for one in policy("head-policy.json")["Statement"]}
    [tag] = head["EndNodesOfThisCluster"]["Condition"]["StringEquals"].values()
    [region] = head["StartNodes"]["Condition"]["StringEquals"].values()
    assert (tag, region) == (given["cluster_name"], given["provider"]["region"])


@pytest.fixture
def archive(monkeypatch):
    """An S3 server that keeps to archive-policy.json, and the environment of a user who has that and nothing else."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    root = {"endpoint_url": url, "region_name": "us-east-1", "aws_access_key_id": "r", "aws_secret_access_key": "r"}
    storage, identities = boto3.client("s3", **root), boto3.client("iam", **root)
    storage.create_bucket(Bucket=BUCKET)
    storage.put_object(Bucket=BUCKET, Key="videos/a.mp4", Body=b"frames")
    given = json.dumps(policy("archive-policy.json")).replace(":::archive", f":::{BUCKET}")
    user = identities.create_user(UserName=uuid.uuid4().hex)["User"]["UserName"]
    identities.put_user_policy(UserName=user, PolicyName="archive", PolicyDocument=given)
    key = identities.create_access_key(UserName=user)["AccessKey"]
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # from now on every request is judged
    yield
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_the_policy_suffices_for_what_a_run_does_with_its_storage(archive, tmp_path):
    output = f"s3://{BUCKET}/captions"
    check_readable(f"s3://{BUCKET}/videos/a.mp4")
    assert list(list_files(f"s3://{BUCKET}/videos")) == [f"s3://{BUCKET}/videos/a.mp4"]
    assert fetch_video(f"s3://{BUCKET}/videos/a.mp4", tmp_path)[1] == 6
    with pytest.raises(RowError, match="not found"):
        fetch_video(f"s3://{BUCKET}/videos/none.mp4", tmp_path)
    check_writable(output)
    with hold_lease(output, "a test", times=LeaseTimes(heartbeat_s=60)) as lease:
        lease.check()
        write_atomic(f"{output}/runs/r/summary.json", b"{}")
        conditional_write.replace_whole(f"{output}/results/a.parquet", b"rows", None, 5.0)
        large = tmp_path / "large"
        large.write_bytes(bytes(101 * 2**20))  # beyond what goes in one request
        write_atomic(f"{output}/runs/r/large", large)
    assert read_bytes(f"{output}/results/a.parquet") == b"rows"
    assert exists(f"{output}/runs/r/large")


def test_the_policy_lets_nothing_else_be_written_or_deleted(archive):
    with pytest.raises(UserError, match="permission denied"):
        write_atomic(f"s3://{BUCKET}/videos/a.mp4", b"overwritten")
    write_atomic(f"s3://{BUCKET}/captions/results/a.parquet", b"rows")
    with pytest.raises(UserError, match="permission denied"):
        delete(f"s3://{BUCKET}/captions/results/a.parquet")
    assert read_bytes(f"s3://{BUCKET}/videos/a.mp4") == b"frames"
