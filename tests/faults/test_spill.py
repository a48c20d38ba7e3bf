"""No space left where objects are spilled to: whether the job ends well or breaks off, it can be finished."""

import re
import subprocess
from contextlib import contextmanager

import pytest

from tests.faults.cluster import raylets
from tests.video.samples import write_video

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

FRAMES = 1200
FULL = re.compile("No space left on device|Not a directory|File exists")


@contextmanager
def no_space_left(folder):
    """Inside, `folder` is a file system of 1 MiB; where none may be mounted, a plain file, to which nothing goes."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        folder.rename(folder.with_suffix(".before"))
        folder.touch()
    try:
        yield
    finally:
        if mounted.returncode:
            folder.unlink()
            folder.with_suffix(".before").rename(folder)
        else:
            subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def long_video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("long") / "a.mp4", frames=FRAMES, size=(64, 48)).read_bytes()


def test_a_job_without_space_to_spill_can_be_ended_when_there_is_some(night, environment, long_video):
    job = night(40, long_video)
    given = [f"video.frames={FRAMES}", "cluster.batch_size=16"]  # at work together: four times the object store
    with raylets(environment, workers=1) as cluster:
        with no_space_left(cluster.spilled):
            crowded = job.start(cluster.address, *given, seconds=0.3)
            assert crowded.finish() in (0, 3), crowded.error
        assert any(FULL.search(path.read_text(errors="replace")) for path in cluster.logs.glob("io_worker*.err"))
        job.finish(job.start(cluster.address, *given))
