"""One S3 server behind a proxy and one cluster of three raylets for the whole folder."""

from __future__ import annotations

from itertools import count

import pytest

from tests.faults.cluster import raylets
from tests.faults.s3_proxy import Faults, S3Proxy
from tests.video.samples import write_video

# Before they are imported: what these two assert is told as in a test.
pytest.register_assert_rewrite("tests.faults.archive", "tests.faults.driver")

_NAMES = count()


@pytest.fixture(scope="session")
def moto():
    """Host and port of a real S3 protocol server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture(scope="session")
def s3_proxy(moto):
    with S3Proxy(*moto).running() as proxy:
        yield proxy


@pytest.fixture
def proxy(s3_proxy):
    """Between workers and storage; without faults until a test sets them."""
    s3_proxy.seen.clear()
    yield s3_proxy
    s3_proxy.faults = Faults()


@pytest.fixture(scope="session")
def environment(s3_proxy, tmp_path_factory):
    """What drivers and workers need to reach the storage, through the proxy."""
    return {
        "AWS_ENDPOINT_URL": s3_proxy.url,
        "AWS_ACCESS_KEY_ID": "testing-key",
        "AWS_SECRET_ACCESS_KEY": "testing-secret-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "HIERAVID_CACHE": str(tmp_path_factory.mktemp("cache")),
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def archive(moto, environment):
    """The filesystem of the server itself, with a bucket."""
    import s3fs

    from tests.faults.archive import BUCKET

    host, port = moto
    files = s3fs.S3FileSystem(
        endpoint_url=f"http://{host}:{port}",
        key=environment["AWS_ACCESS_KEY_ID"],
        secret=environment["AWS_SECRET_ACCESS_KEY"],
        use_listings_cache=False,
    )
    files.mkdir(BUCKET)
    return files


@pytest.fixture(scope="session")
def video(tmp_path_factory):
    """The bytes of a video of twenty frames."""
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", frames=20).read_bytes()


@pytest.fixture
def night(archive, tmp_path, environment, video):
    """Makes a job over so many rows; its drivers are ended with the test."""
    from tests.faults.archive import Night

    made = []

    def make(rows: int, video: bytes = video) -> Night:
        made.append(Night(archive, f"night-{next(_NAMES)}", tmp_path, environment, video, rows))
        return made[-1]

    yield make
    for job in made:
        job.end()


@pytest.fixture(scope="package")
def shared_cluster(environment):
    with raylets(environment) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster):
    """A head and two worker nodes, whatever the test before did to them."""
    while len(shared_cluster.nodes) < 2:
        shared_cluster.add_node()
    return shared_cluster
