"""A manifest may name anything that has a path: none of it holds a decoder up."""

import os
import threading

import pyarrow as pa
import pytest

from pipeline.stages import Decoder
from pipeline.stages_tables import GROUP_SCHEMA
from pipeline.video.limits import Limits
from pipeline.video.sampling import Sampling


@pytest.fixture(scope="module")
def decoder():
    shared = Decoder(Sampling(2), Limits(decode_timeout_s=20))
    yield shared
    shared.close()


def error_of(decoder: Decoder, uri: str) -> dict[str, str] | None:
    """What the decoder makes of a video, in a thread that may be left behind hanging."""
    row = dict.fromkeys(GROUP_SCHEMA.names) | {"shard": "s", "group": "g", "uri": uri, "items": []}
    outcome = []
    thread = threading.Thread(
        target=lambda: outcome.append(decoder(pa.Table.from_pylist([row], schema=GROUP_SCHEMA)).to_pylist()[0]),
        daemon=True,
    )
    thread.start()
    thread.join(60)
    assert outcome, "it hangs"
    return outcome[0]["error"]


def test_a_pipe_that_nobody_writes_into_is_no_video(tmp_path, decoder):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert error_of(decoder, str(tmp_path / "pipe.mp4"))["code"] == "not_a_video"


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/proc/self/maps"])
def test_a_file_of_the_kernel_is_no_video(decoder, path):
    assert error_of(decoder, path)["code"] in {"not_a_video", "empty_file"}


def test_links_that_lead_in_a_circle_cannot_be_fetched(tmp_path, decoder):
    (tmp_path / "one.mp4").symlink_to(tmp_path / "other.mp4")
    (tmp_path / "other.mp4").symlink_to(tmp_path / "one.mp4")
    assert error_of(decoder, str(tmp_path / "one.mp4"))["code"] == "fetch_failed"
