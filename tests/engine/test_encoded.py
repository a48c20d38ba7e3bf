"""A video may be encoded once and asked about in many calls."""

import dataclasses

import pytest
import torch

from pipeline.engine import EncodedVideo, EncodeError, Request, VideoLLM
from pruning import Needs, PruningConfig
from tests.engine.pruners import EvenPruner
from tests.engine.videos import make_video

HALF = PruningConfig(method="hieravid", retention=0.5)
ATTENTIVE = EvenPruner(needs=Needs(encoder_attention=True))


def ask(frames, prompt="what happens", **options):
    return Request(frames, prompt, **{"max_new_tokens": 6, **options})


@pytest.fixture(scope="module")
def videos():
    return [make_video(5), make_video(1, seed=1), make_video(3, height=20, seed=2)]


def test_encoded_videos_are_answered_like_their_frames_without_the_vision_tower(llm, videos, monkeypatch):
    from_frames = llm.answer([ask(frames) for frames in videos], HALF)
    encoded = llm.encode(videos)
    monkeypatch.setattr("pipeline.engine.encoding.encode_videos", None)
    for _ in range(2):
        answers = llm.answer([ask(video) for video in encoded], HALF)
        assert [a.token_ids for a in answers] == [a.token_ids for a in from_frames]
        assert [a.stats.stage_tokens for a in answers] == [a.stats.stage_tokens for a in from_frames]
        assert [a.stats.vision_ms for a in answers] == [0.0, 0.0, 0.0]


def test_frames_and_encoded_videos_mix_in_one_call(llm, videos):
    [encoded] = llm.encode(videos[:1])
    answers = llm.answer([ask(encoded), ask(videos[0]), ask(videos[1])], HALF)
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].stats.vision_ms == 0.0
    assert answers[1].stats.vision_ms > 0.0


def test_what_encode_returns(llm, videos, monkeypatch):
    clock = iter(range(1, 100))
    monkeypatch.setattr("pipeline.engine.stopwatch.time.perf_counter", lambda: next(clock) / 1000)  # a lap takes 1 ms
    encoded = llm.encode(videos)
    assert [video.frames for video in encoded] == [5, 1, 3]
    assert [tuple(video.tokens.shape) for video in encoded] == [(80, 64), (16, 64), (48, 64)]
    assert [video.attention for video in encoded] == [None] * 3
    assert [video.vision_ms for video in encoded] == pytest.approx([5 / 9, 1 / 9, 3 / 9])
    for video in encoded:  # a video that is kept does not keep the others
        assert video.tokens.untyped_storage().nbytes() == video.tokens.nbytes
    assert llm.encode([]) == []


def test_prompts_share_a_keyed_encoded_video(llm, videos):
    [encoded] = llm.encode(videos[:1])
    prompts = ["what happens", "how many?"]
    alone = llm.answer([ask(encoded, prompt) for prompt in prompts], HALF)
    shared = llm.answer([ask(encoded, prompt, video_key="clip") for prompt in prompts], HALF)
    assert [a.token_ids for a in shared] == [a.token_ids for a in alone]
    with pytest.raises(ValueError, match="request 1: video_key 'clip' stands for frames of another shape in request 0"):
        llm.answer([ask(encoded, video_key="clip"), ask(videos[1], video_key="clip")], HALF)


def test_tokens_may_wait_in_another_type(llm, grouped_folder, videos):
    half = VideoLLM.load(grouped_folder, device="cpu", dtype="bfloat16")
    encoded = half.encode(videos, attention=True)
    stored = [dataclasses.replace(v, tokens=v.tokens.float(), attention=v.attention.double()) for v in encoded]
    pruner = EvenPruner(needs=Needs(encoder_attention=True))
    half.answer([ask(video, max_new_tokens=1) for video in stored], pruner)
    inputs = [view for view in pruner.seen if view.encoder_attention is not None]
    assert len(inputs) == 3
    for view, original in zip(sorted(inputs, key=lambda v: -len(v.index)), (encoded[0], *encoded[:0:-1]), strict=True):
        assert torch.equal(view.hidden, original.tokens)
        assert torch.equal(view.encoder_attention, original.attention)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 4}, r"4 frames has tokens of shape \[64, 64\] in this model, not \[80, 64\]"),
        ({"tokens": torch.zeros(80, 32)}, r"shape \[80, 64\] in this model, not \[80, 32\]"),
        ({"attention": torch.zeros(79)}, r"attention must have shape \[80\]"),
        ({"attention": None}, "'even' needs the vision tower's attention, which this encoded video lacks"),
    ],
)
def test_encoded_videos_that_do_not_fit_are_refused(llm, videos, changes, message):
    [encoded] = llm.encode(videos[:1], attention=True)
    with pytest.raises(ValueError, match=f"^request 1: .*{message}"):
        llm.answer([ask(encoded), ask(dataclasses.replace(encoded, **changes))], ATTENTIVE)


def test_encode_refuses_what_is_no_video_and_names_failures(llm, videos, monkeypatch):
    with pytest.raises(ValueError, match=r"^video 1: frames must be uint8"):
        llm.encode([videos[0], videos[0].astype("float32")])
    monkeypatch.setattr("pipeline.engine.encoding.encode_videos", lambda *_: 1 / 0)
    with pytest.raises(EncodeError, match="division by zero"):
        llm.encode(videos)


def test_frame_times_count_the_frames_of_an_encoded_video(llm, videos):
    [encoded] = llm.encode(videos[1:2])
    assert isinstance(encoded, EncodedVideo)
    llm.answer([ask(encoded, frame_times_s=(0.0,))], HALF)
    with pytest.raises(ValueError, match="2 frame_times_s for 1 frames"):
        llm.answer([ask(encoded, frame_times_s=(0.0, 1.0))], HALF)
