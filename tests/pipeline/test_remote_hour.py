"""An hour of video on an S3 server: what looking at 64 of its frames moves.

The endpoint holds the object in memory and answers ranges of it: moto reads the whole object for each request,
which at a gigabyte is no test of anything. `pytest -m soak -s tests/pipeline/test_remote_hour.py` prints the share.
"""

from dataclasses import replace

import pytest

from pipeline.benchmark.decode.clips import RECIPES, make_clip
from pipeline.remote_file import RemoteFile
from pipeline.video.reader import VideoReader
from pipeline.video.sampling import Sampling
from tests.pipeline.range_server import RangeServer


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_sixty_four_keyframes_of_an_hour_move_at_most_a_tenth_of_it(tmp_path, s3_environment):
    [recipe] = [recipe for recipe in RECIPES if recipe.name == "h264-1080p-gap250-600s"]
    clip = make_clip(replace(recipe, duration_s=3600, options={**recipe.options, "crf": "20"}), tmp_path)
    content = clip.read_bytes()
    assert len(content) * 8 / 3600 >= 2e6
    with RangeServer(content).running() as url, VideoReader() as reader:
        s3_environment.setenv("AWS_ENDPOINT_URL", url)
        with RemoteFile("s3://archive/hour.mp4", 2, tmp_path) as file:
            read = reader.read(file, Sampling(64, "keyframe"))
            assert len(read.video.frames) == 64
            share = file.bytes_fetched / len(content)
    print(f"{len(content) / 1e6:,.0f} MB, {file.bytes_fetched / 1e6:,.1f} MB fetched: {share:.1%}")
    assert share <= 0.10
