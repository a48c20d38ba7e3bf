"""No space left where objects are spilled to: whether the job ends well or breaks off, it can be finished."""

import re
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tests.faults.cluster import raylets
from tests.video.samples import write_video

pytestmark = pytest.mark.timeout(1800)

FULL = re.compile("No space left on device|Not a directory|File exists")
EAGER = {"RAY_object_spilling_threshold": "0.1", "RAY_min_spilling_size": "1"}
# Whatever the job does: a part of the object store is another's, and there to be spilled.
NEIGHBOUR = """
import sys, time, ray

@ray.remote
def large():
    return bytes(30 * 2**20)

ray.init(address=sys.argv[1], log_to_driver=False)
made = large.remote()
ray.wait([made], fetch_local=False)
print("made", flush=True)
time.sleep(3600)
"""


@contextmanager
def no_space_left(folder):
    """Inside, `folder` is a file system of 1 MiB; where none may be mounted, a plain file, to which nothing goes.

    Yields what is injected for want of the real thing, "" where that is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        folder.rename(folder.with_suffix(".before"))
        folder.touch()
    try:
        yield "a plain file in the place of a full disk" if mounted.returncode else ""
    finally:
        if mounted.returncode:
            folder.unlink()
            folder.with_suffix(".before").rename(folder)
        else:
            subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def neighbour(address):
    """Another job on the cluster, with a large object."""
    command = [sys.executable, "-c", NEIGHBOUR, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout.readline() == b"made\n"
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("frames", [300, pytest.param(1200, marks=pytest.mark.soak)])
def test_a_job_without_space_to_spill_can_be_ended_when_there_is_some(
    night, environment, tmp_path, record_property, frames
):
    # Those of a few videos fit into what is left of the object store, or do not.
    video = write_video(tmp_path / "long.mp4", frames=frames, size=(96, 64)).read_bytes()
    job = night(16, video)
    given = [f"video.frames={frames}", "cluster.batch_size=2", "cluster.decoders=1"]
    with raylets(environment | EAGER, workers=1) as cluster:
        with no_space_left(cluster.spilled) as injected, neighbour(cluster.address):
            if injected:
                record_property("injected", injected)
            driver = job.start(cluster.address, *given)
            assert driver.finish() in (0, 3), driver.error
        assert any(FULL.search(path.read_text(errors="replace")) for path in cluster.logs.glob("io_worker*.err"))
        if driver.status == 3:
            driver = job.start(cluster.address, *given)
        job.finish(driver)
