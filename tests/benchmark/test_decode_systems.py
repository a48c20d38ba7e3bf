"""Each system of the reading benchmark gives the frames that it is asked for, and what it uses is counted."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

from pipeline.benchmark.decode.clips import FPS, RECIPES, make_clip
from pipeline.benchmark.decode.measure import Order, measure
from pipeline.benchmark.decode.pictures import read_number
from pipeline.benchmark.decode.systems import POLICIES, SYSTEMS, Task
from pipeline.benchmark.decode.timeline import read_timeline
from pipeline.benchmark.decode.usage import usage_now, used_since

FRAMES = 7
RECIPE = replace(RECIPES[0], width=128, height=96, gap=10, part=30, duration_s=3)
CASES = [(system, policy) for system, policies in POLICIES.items() for policy in policies]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    webm = next(recipe for recipe in RECIPES if recipe.container == "webm")
    return {
        "mp4": make_clip(RECIPE, folder),
        "webm": make_clip(replace(webm, width=128, height=96, gap=10, part=30, duration_s=3), folder),
    }


@pytest.fixture(params=SYSTEMS)
def system(request):
    if request.param == "torchcodec" and importlib.util.find_spec("torchcodec") is None:
        pytest.skip("torchcodec is not installed")
    return request.param


@pytest.mark.parametrize("container", ["mp4", "webm"])
def test_a_system_shows_the_frames_of_its_times(system, container, clips):
    timeline = read_timeline(clips[container], FRAMES)
    with SYSTEMS[system]() as decode:
        for policy in POLICIES[system]:
            shown = decode(Task(clips[container], policy, FRAMES, timeline.wanted_s))
            assert shown.pixels.shape[1:] == (96, 128, 3)
            assert shown.pixels.dtype == np.uint8
            numbers = [round(time * FPS) for time in shown.times_s]
            assert [read_number(frame) for frame in shown.pixels] == [number % 30 for number in numbers]
            if policy == "uniform":
                assert shown.times_s == pytest.approx(timeline.wanted_s, abs=1e-3)
            elif policy == "keyframe":
                assert len(numbers) == FRAMES
                assert sum(number % 10 == 0 for number in numbers) >= FRAMES - 1  # ours takes the last one exactly
                assert np.abs(np.subtract(shown.times_s, timeline.wanted_s)).max() < 0.5


def order(clips, **changes):
    timeline = read_timeline(clips["mp4"], FRAMES)
    plain = Order("pyav", "uniform", FRAMES, str(clips["mp4"]), timeline, str(clips["mp4"]), 30, FPS)
    return replace(plain, **changes)


def test_a_measurement_says_what_was_used_and_how_far_frames_lie(clips):
    exact = measure(order(clips))
    near = measure(order(clips, policy="keyframe"))
    assert (exact.frames, near.frames) == (FRAMES, FRAMES)
    assert exact.max_time_error_s == pytest.approx(0, abs=1e-3)
    assert 1 / FPS < near.max_time_error_s < 0.5
    assert min(exact.usage.cpu_s, exact.usage.wall_s) > 0
    assert exact.usage.peak_mb > 20
    assert 0 < near.usage.bytes_read < 3 * clips["mp4"].stat().st_size


def test_frames_that_are_missing_count_as_far_off(clips):
    timeline = read_timeline(clips["mp4"], FRAMES)
    late = replace(timeline, wanted_s=[*timeline.wanted_s, 9.0])
    assert measure(order(clips, system="decord", timeline=late)).max_time_error_s == pytest.approx(
        9 - 89 / FPS, abs=1e-3
    )


def test_a_frame_that_is_another_than_said_is_an_error(clips):
    with pytest.raises(ValueError, match=r"\d of 7 frames are others than said"):
        measure(order(clips, part=29))


def test_processor_time_and_input_of_children_count():
    before = usage_now()
    code = "import sys,time\nwhile time.process_time() < 0.3: pass\nprint(1, flush=True)\nsys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        alive = used_since(before)
        child.stdin.close()
        child.wait()
        ended = used_since(before)
    assert alive.cpu_s > 0.29
    assert ended.cpu_s >= alive.cpu_s - 0.02  # the clock of one who has ended is rounded
    assert 1000 < alive.bytes_read <= ended.bytes_read
    assert min(alive.peak_mb, ended.peak_mb) > 5 + before.peak_mb / 2


def test_bytes_and_the_peak_are_those_of_this_process(tmp_path):
    file = tmp_path / "bytes"
    file.write_bytes(bytes(3_000_000))
    before = usage_now()
    data = file.read_bytes()
    ballast = np.ones(40 << 20, np.uint8)
    used = used_since(before)
    assert 3_000_000 <= used.bytes_read < 3_200_000
    assert used.peak_mb * 2**20 > len(data) + ballast.nbytes


@pytest.mark.parametrize("change", [{}, {"system": "nothing"}])
def test_the_process_answers_in_json(clips, change):
    command = [sys.executable, "-m", "pipeline.benchmark.decode.measure"]
    done = subprocess.run(command, input=json.dumps(asdict(order(clips, **change))), capture_output=True, text=True)
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert answer.keys() == ({"error"} if change else {"usage", "frames", "max_time_error_s"})
