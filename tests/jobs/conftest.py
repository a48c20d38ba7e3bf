"""One small Ray cluster and one S3 server over HTTP for the whole folder."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

BUCKET = "archive"
# Ray makes its workers as patient as can be; on a machine with other work these tests would wait for ever.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """A bucket behind a real S3 protocol server on a loopback port; the environment points to it, and to a cache."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    changed = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing-key",
        "AWS_SECRET_ACCESS_KEY": "testing-secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "HIERAVID_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    import s3fs

    files = s3fs.S3FileSystem(endpoint_url=changed["AWS_ENDPOINT_URL"], use_listings_cache=False)
    files.mkdir(BUCKET)
    yield files
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster(s3_server):
    """A local cluster of two cores. Started after the S3 server: its workers inherit the environment."""
    import ray.data

    # Ray Data's debug log goes to a file of its own; in a test report it would bury everything else.
    logging.getLogger("ray.data").propagate = False
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=256 * 2**20,
        log_to_driver=False,
        logging_level="error",
    )
    yield
    ray.shutdown()


@pytest.fixture
def write_manifest(tmp_path):
    """Writes rows as JSON lines and returns the path."""

    def write(rows: list[dict], name: str = "manifest.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture(scope="session")
def decoder():
    """Takes four uniform frames of a video. One for the whole folder: its children take a moment to start."""
    from pipeline.stages import Decoder
    from pipeline.video.limits import Limits
    from pipeline.video.sampling import Sampling

    decoder = Decoder(Sampling(4, "uniform"), Limits())
    yield decoder
    decoder.close()
