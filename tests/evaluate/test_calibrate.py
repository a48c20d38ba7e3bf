import json

import numpy as np
import pytest
import torch

from pipeline.engine import Request, VideoLLM
from pipeline.errors import UserError
from pipeline.evaluate.calibrate import calibrate
from pipeline.evaluate.descent import COORDINATES, Coordinate, descend, effective
from pipeline.evaluate.reproduction import Reproduction, Sample, reproduction
from pipeline.evaluate.samples import manifest_videos
from pruning import PruningConfig
from pruning.calibration import read_calibration
from tests.video.samples import write_video

START = {
    "shape": "author",
    "gamma": 0.6,
    "beta": 0.4,
    "segments": None,
    "merge_share": 1.0,
    "merge_across_segments": False,
    "tau": 0.6,
    "relevance_sign": "negative",
    "relevance_transform": "minmax",
    "max_block": 1024,
}


def scores(gains, videos=40):
    """A score function: what options gain, by (name, value), on videos that are far more unlike than that."""
    videos = np.random.default_rng(0).standard_normal((2, videos))
    gaining = np.linspace(0.5, 1.5, videos.shape[1])

    def score(options):
        return videos + gaining * sum(gains.get(option, 0.0) for option in options.items())

    return score


def test_what_gains_beyond_noise_is_kept():
    best, steps = descend(START, scores({("merge_share", 0.5): 0.05, ("relevance_sign", "positive"): 0.05}))
    assert best == {**START, "merge_share": 0.5, "relevance_sign": "positive"}
    assert [step.kept.coordinate for step in steps if step.kept] == ["schedule, merge share", "relevance"]


def test_the_best_of_several_gains_is_kept():
    gains = {("gamma", 0.4): 0.03, ("gamma", 0.6): 0.08, ("gamma", 0.8): 0.05}
    best, _ = descend(START, scores({**gains, ("shape", "geometric"): 0.01}))
    assert (best["shape"], best["gamma"]) == ("geometric", 0.6)


def test_a_gain_within_noise_is_not_kept():
    rng = np.random.default_rng(0)

    def one_lucky_video(options):
        found = np.zeros((2, 40))
        if options != START:
            found[:, int(rng.integers(40))] = 3.0
        return found

    best, steps = descend(START, one_lucky_video)
    assert best == START
    assert max(trial.gain for step in steps for trial in step.trials) > 0
    assert all(step.kept is None for step in steps)
    assert len(steps) == len(COORDINATES)


def test_a_second_pass_sees_what_later_choices_changed():
    def score(options):
        together = options["beta"] == 0.6 and options["shape"] == "geometric"
        return np.full(
            (1, 8), 0.1 * (options["beta"] == 0.6) + 0.1 * together + 0.1 * (together and options["gamma"] == 0.8)
        )

    best, steps = descend(START, score)
    assert (best["beta"], best["shape"], best["gamma"]) == (0.6, "geometric", 0.8)
    assert [step.coordinate for step in steps if step.kept] == ["segments", "schedule, merge share"]
    # Nothing is tried again once all others have been since the last change.
    assert [step.coordinate for step in steps[len(COORDINATES) :]] == [c.name for c in COORDINATES]


def test_nothing_is_scored_twice_and_nothing_without_a_say():
    seen = []

    def score(options):
        seen.append(json.dumps(effective(options), sort_keys=True))
        return np.zeros((1, 4))

    descend({**START, "beta": 0.0}, score)
    assert len(seen) == len(set(seen))
    assert not any('"tau"' in name for name in seen if '"beta": 0.0' in name)
    assert not any('"gamma"' in name for name in seen if '"shape": "author"' in name)


def test_every_candidate_is_a_set_of_options():
    for coordinate in COORDINATES:
        for candidate in coordinate.candidates:
            PruningConfig(**candidate)
            assert set(candidate) <= set(START)


@pytest.fixture(scope="module")
def tiny():
    torch.set_num_threads(1)
    return VideoLLM.load("builtin:tiny", device="cpu", dtype="float32")


def test_the_unpruned_model_reproduces_its_own_answers(tiny):
    rng = np.random.default_rng(3)
    videos = tiny.encode([rng.integers(0, 255, (4, 32, 32, 3), dtype=np.uint8) for _ in range(2)])
    samples = [Sample(videos[0], ("what color is it", "how many")), Sample(videos[1], ("what color is it",))]
    reproduction = Reproduction(tiny, samples)
    none = PruningConfig(method="none")
    assert reproduction.agreement(none, [1.0]).tolist() == [[1.0, 1.0]]
    sure = reproduction.likelihood(none, [1.0])
    assert sure.shape == (1, 2)
    assert (sure <= 0).all()
    [answer] = tiny.answer([Request(videos[1], "what color is it", max_new_tokens=128)], none)
    forced = Request(videos[1], "what color is it", forced_token_ids=tuple(answer.token_ids), retention=0.3)
    [told] = tiny.answer([forced], PruningConfig(method="uniform"))
    pruned = reproduction.likelihood(PruningConfig(method="uniform"), [0.3])
    assert pruned[0, 1] == pytest.approx(np.mean(told.logprobs), abs=1e-4)


FEW = (
    Coordinate("schedule", ({"shape": "author"}, {"shape": "geometric", "gamma": 1.0})),
    Coordinate("segments", ({"beta": 0.4, "segments": None}, {"segments": 2})),
    Coordinate("merge share", ({"merge_share": 0.0},)),
    Coordinate("rest", ({"merge_across_segments": False, "tau": 0.6},)),
)


@pytest.fixture
def videos(tmp_path):
    """A folder of three videos and a file that is none."""
    for number in range(3):
        write_video(tmp_path / "videos" / f"{number}.mp4", frames=20, size=(96, 96))
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    return str(tmp_path / "videos")


def test_a_model_is_calibrated_on_any_videos(tmp_path, videos):
    told = []
    out = tmp_path / "calibration.json"
    calibration = calibrate(
        "builtin:tiny",
        str(out),
        manifest=videos,
        clips=4,
        retentions=(0.2,),
        device="cpu",
        report=told.append,
        coordinates=FEW,
    )
    assert read_calibration(out) == calibration
    assert set(calibration.options) == set(START) - {"relevance_sign", "relevance_transform", "max_block"}
    evidence = calibration.evidence
    assert evidence["videos"] == 3
    assert [step["coordinate"] for step in evidence["steps"]][:3] == ["schedule", "segments", "merge share"]
    trials = [trial for step in evidence["steps"] for trial in step["trials"]]
    assert len(told) == len(trials) + 4
    assert evidence["chosen"]["scores"][0] >= evidence["start"]["scores"][0]
    assert all(0 <= share <= 1 for shares in evidence["agreement"].values() for share in shares)


def test_workers_measure_the_same(tiny, videos):
    source, config = manifest_videos(videos, 4), PruningConfig(preset="default", calibration=None)
    with reproduction("builtin:tiny", "cpu", "float32", source, 1, tiny) as here:
        alone = here("likelihood", config, (0.3, 0.1))
    with reproduction("builtin:tiny", "cpu", "float32", source, 2) as spread:
        together = spread("likelihood", config, (0.3, 0.1))
    assert alone.shape == together.shape == (2, 3)
    np.testing.assert_allclose(np.sort(alone), np.sort(together), atol=1e-4)


def test_rows_of_a_manifest_bring_their_prompts(tmp_path):
    rows = [
        {"uri": "a.mp4", "question": "which", "options": ["x", "y"]},
        {"uri": "b.mp4"},
        {"uri": "a.mp4", "prompt": "what", "retention": 0.5},
        {"uri": "a.mp4", "prompt": "what"},
        {"uri": "https://host/c.mp4"},
        {"uri": "d.mp4", "frames": 3},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = manifest_videos(str(path), 2, "Describe it.")
    assert [video.uri.rpartition("/")[2] for video in source.videos] == ["a.mp4", "b.mp4"]
    assert source.videos[0].prompts[1:] == ("what",)
    assert "A. x" in source.videos[0].prompts[0]
    assert source.videos[1].prompts == ("Describe it.",)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"retentions": (0.3, 1.0)}, "below 1"),
        ({"retentions": ()}, "retentions"),
        ({"clips": 1}, "at least 2"),
        ({"workers": 0}, "workers = 0"),
        ({"first": 10**9}, "first = 1000000000: the validation split has"),
        ({"model": "builtin:big"}, "no built-in model"),
        ({"manifest": "/nowhere/m.jsonl"}, "not found"),
        ({"manifest": "s3://key:secret@archive/m.jsonl"}, "credentials"),
    ],
)
def test_a_mistake_is_told_before_anything_is_computed(tmp_path, options, told):
    with pytest.raises(UserError, match=told):
        calibrate(**{"model": "builtin:tiny", "out": str(tmp_path / "c.json"), "device": "cpu", **options})
