"""What `VideoLLM.answer` promises beyond the numbers: ends, statistics, shared videos, refusals."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from pipeline.engine import EncodeError, ModelError, PromptTooLongError, Request, VideoLLM, scheduler, vision
from pipeline.engine.admission import admit
from pipeline.engine.memory import MemoryPlan
from pruning import PruningConfig, make_pruner
from tests.engine.recording import answer_traced
from tests.engine.videos import make_video

HALF = PruningConfig(method="hieravid", retention=0.5)


def ask(frames=5, prompt="what happens", **options):
    return Request(make_video(frames), prompt, **{"max_new_tokens": 6, **options})


def test_an_answer_ends_at_the_end_token_or_at_its_length(llm, grouped_folder, tmp_path):
    [full] = llm.answer([ask()], HALF)
    assert full.finish_reason == "length"
    assert len(full.token_ids) == full.stats.output_tokens == 6
    folder = shutil.copytree(grouped_folder, tmp_path / "model")
    end = full.token_ids[2]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, 1]}))
    stopping = VideoLLM.load(folder, device="cpu")
    [answer] = stopping.answer([ask()], HALF)
    first = full.token_ids.index(end)
    assert answer.finish_reason == "stop"
    assert answer.token_ids == full.token_ids[: first + 1]
    assert answer.text == llm._family.decode_text(full.token_ids[:first]).strip()
    assert stopping.answer([ask(max_new_tokens=first + 1)], HALF)[0].finish_reason == "stop"


def test_without_a_generation_config_the_tokenizer_names_the_end(grouped_folder, tmp_path):
    folder = shutil.copytree(grouped_folder, tmp_path / "model")
    (folder / "generation_config.json").unlink()
    family = VideoLLM.load(folder, device="cpu")._family
    assert [i for i in range(300) if family.is_end(i)] == [family._chat.tokenizer.convert_tokens_to_ids("<|im_end|>")]


def test_special_tokens_do_not_appear_in_the_text(llm):
    ids = llm._family._chat.tokenizer("red<|im_end|>").input_ids
    assert llm._family.decode_text(ids) == "red"


@pytest.mark.parametrize("method", ["hieravid", "uniform", "random", "none"])
def test_statistics_agree_with_each_other(llm, method):
    requests = [ask(frames, seed=frames) for frames in (1, 4, 9)]
    for request, answer in zip(
        requests, llm.answer(requests, PruningConfig(method=method, retention=0.3)), strict=True
    ):
        stats = answer.stats
        assert stats.video_tokens == len(request.frames) * 16
        before, after = llm._family.tokenize(request.prompt).before, llm._family.tokenize(request.prompt).after
        assert stats.prompt_tokens == len(before) + len(after) + 1  # the newline after the video
        assert stats.stage_layers[0] == 0
        assert stats.stage_layers == sorted(set(stats.stage_layers))
        assert stats.stage_tokens == sorted(stats.stage_tokens, reverse=True)
        ends = [*stats.stage_layers[1:], llm.info.num_layers]
        tokens = [n * (end - start) for n, start, end in zip(stats.stage_tokens, stats.stage_layers, ends, strict=True)]
        assert stats.retention_achieved == pytest.approx(sum(tokens) / (llm.info.num_layers * stats.video_tokens))
        assert stats.retention_requested == 0.3
        for ratio in (stats.retention_achieved, stats.flops_ratio, stats.kv_ratio):
            assert 0 < ratio <= 1
        assert (stats.flops_ratio == 1) == (method == "none")
        assert (stats.segments is not None) == (method == "hieravid")
        assert min(stats.vision_ms, stats.prune_ms, stats.prefill_ms, stats.generate_ms) > 0


def test_times_are_shares_of_the_time_spent(llm, monkeypatch):
    clock = iter(range(1, 10_000))
    monkeypatch.setattr("pipeline.engine.stopwatch.time.perf_counter", lambda: next(clock) / 1000)  # a lap takes 1 ms
    requests = [ask(3, max_new_tokens=2), ask(6, max_new_tokens=4, seed=1)]
    short, long = (answer.stats for answer in llm.answer(requests, PruningConfig(method="uniform", retention=0.5)))
    assert short.vision_ms + long.vision_ms == pytest.approx(1)
    assert short.prune_ms + long.prune_ms == pytest.approx(1)
    assert long.prune_ms == pytest.approx(2 * short.prune_ms)
    assert short.prefill_ms + long.prefill_ms == pytest.approx(2)
    assert (short.generate_ms, long.generate_ms) == (pytest.approx(1), pytest.approx(3))


def test_half_precision_gives_about_the_same_logits(llm, grouped_folder):
    half = VideoLLM.load(grouped_folder, device="cpu", dtype="bfloat16")
    requests = [ask(4, max_new_tokens=2), ask(2, max_new_tokens=2, seed=1)]
    _, exact = answer_traced(llm, requests, PruningConfig(method="uniform", retention=0.5))
    answers, rounded = answer_traced(half, requests, PruningConfig(method="uniform", retention=0.5))
    for one, other in zip(exact, rounded, strict=True):
        assert torch.corrcoef(torch.stack((one.logits[0], other.logits[0])))[0, 1] > 0.99
        assert all(part.dtype == torch.bfloat16 for layer in other.cache for part in layer)
    assert [len(a.token_ids) for a in half.answer(requests, HALF)] == [len(a.token_ids) for a in answers]


def test_a_request_may_override_the_retention(llm):
    answers = llm.answer([ask(8), ask(8, retention=0.2, seed=1)], HALF)
    assert [answer.stats.retention_requested for answer in answers] == [0.5, 0.2]
    assert [answer.stats.retention_achieved for answer in answers] == pytest.approx([0.5, 0.2], abs=0.02)


def test_a_shared_video_is_encoded_once_and_answered_the_same(llm, monkeypatch):
    encoded = []
    encode = vision.encode_videos
    monkeypatch.setattr(
        "pipeline.engine.encoding.encode_videos",
        lambda family, videos, *options: encoded.extend(videos) or encode(family, videos, *options),
    )
    prompts = ["what happens", "how many?", "which came first"]
    apart = [ask(5, prompt) for prompt in prompts]
    shared = [dataclasses.replace(request, video_key="clip") for request in apart]
    own = llm.answer(apart, HALF)
    assert len(encoded) == 3
    together = llm.answer([*shared, ask(2, seed=9)], HALF)
    assert len(encoded) == 3 + 2
    assert [a.token_ids for a in together[:3]] == [a.token_ids for a in own]
    assert together[0].stats.vision_ms == together[1].stats.vision_ms


def test_small_batches_and_packs_change_nothing(llm, monkeypatch):
    requests = [ask(2 + i % 4, f"question {i}", seed=i, video_key=f"v{i % 4}") for i in range(9)]
    whole = llm.answer(requests, HALF)
    little = dataclasses.replace(MemoryPlan.of(llm._family.decoder), prefill_tokens=130, patches=3 * 64)
    monkeypatch.setattr(llm, "_plan_memory", lambda: little)
    monkeypatch.setattr(scheduler, "_MAX_ROWS", 4)
    monkeypatch.setattr(vision, "_SOURCE_BYTES", 15_000)
    cut = llm.answer(requests, HALF)
    assert [a.token_ids for a in cut] == [a.token_ids for a in whole]
    assert [a.stats.stage_tokens for a in cut] == [a.stats.stage_tokens for a in whole]


def test_frames_may_be_tensors_read_only_or_strided(llm):
    frames = make_video(4)
    read_only = frames.copy()
    read_only.flags.writeable = False
    mirrored = np.ascontiguousarray(frames[:, :, ::-1])[:, :, ::-1]
    forms = [frames, torch.from_numpy(frames), read_only, mirrored]
    answers = llm.answer([Request(form, "what", max_new_tokens=5) for form in forms], HALF)
    assert len({tuple(answer.token_ids) for answer in answers}) == 1


def test_no_requests_no_answers(llm):
    assert llm.answer([], HALF) == []


def test_a_prompt_beyond_the_trained_positions_is_refused(llm):
    limit = llm.info.max_positions
    [answer] = llm.answer([ask(1)], HALF)
    room = limit - answer.stats.video_tokens - answer.stats.prompt_tokens
    with pytest.raises(PromptTooLongError, match=f"request 1: .* exceed the {limit} positions"):
        llm.answer([ask(1), ask(1, max_new_tokens=room + 1)], HALF)
    admitted = admit(llm._family, make_pruner(HALF), 0, ask(1, max_new_tokens=room), 0.5)
    assert admitted.next_position == limit - room


def test_longer_sequences_than_trained_are_answered_where_that_is_allowed(llm, grouped_folder):
    limit = llm.info.max_positions
    long = ask(1, forced_token_ids=(3,), prompt="x" * limit)
    with pytest.raises(PromptTooLongError):
        llm.answer([long], HALF)
    wide = VideoLLM.load(grouped_folder, device="cpu", max_positions=2 * limit)
    [answer] = wide.answer([long], HALF)
    assert answer.stats.prompt_tokens > limit
    with pytest.raises(PromptTooLongError, match=f"exceed the {2 * limit} positions"):
        wide.answer([dataclasses.replace(long, prompt="x" * 2 * limit)], HALF)
    with pytest.raises(ModelError, match="max_positions must be at least 1, not 0"):
        VideoLLM.load(grouped_folder, device="cpu", max_positions=0)


def test_kv_ratio_counts_what_is_cached(llm):
    requests = [ask(6), ask(3, seed=1)]
    for kv_retention in (1.0, 0.4):
        answers, traces = answer_traced(llm, requests, PruningConfig(retention=0.5, kv_retention=kv_retention))
        for answer, trace in zip(answers, traces, strict=True):
            entries = sum(keys.shape[1] for keys, _ in trace.cache)
            whole = len(trace.cache) * (answer.stats.video_tokens + answer.stats.prompt_tokens)
            assert answer.stats.kv_ratio == pytest.approx(entries / whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": np.zeros((2, 8, 8, 3), dtype=np.float32)}, "must be uint8, not float32"),
        ({"frames": np.zeros((2, 3, 8, 8), dtype=np.uint8)}, r"must have shape \[T, H, W, 3\], not \[2, 3, 8, 8\]"),
        ({"frames": np.zeros((8, 8, 3), dtype=np.uint8)}, r"\[T, H, W, 3\]"),
        ({"frames": np.zeros((0, 8, 8, 3), dtype=np.uint8)}, "frames are empty"),
        ({"frames": [[1, 2, 3]]}, "not list"),
        ({"frame_times_s": (0.0,)}, "1 frame_times_s for 5 frames"),
        ({"prompt": None}, "prompt must be text"),
        ({"prompt": "look at <video> now"}, "must not contain <video>"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"retention": 0.0}, r"retention must be in \(0, 1\]"),
        ({"retention": 1.5}, "retention"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"time_instruction": True}, "time_instruction needs frame_times_s and duration_s"),
        (
            {"time_instruction": True, "frame_times_s": (0.0, 1.0, 2.0, 3.0, 4.0), "duration_s": 5.0},
            "time_instruction: LlavaOnevisionForConditionalGeneration was trained without",
        ),
    ],
)
def test_senseless_requests_are_refused_before_any_work(llm, monkeypatch, changes, message):
    monkeypatch.setattr("pipeline.engine.encoding.encode_videos", None)
    with pytest.raises(ValueError, match=f"^request 1: .*{message}"):
        llm.answer([ask(), dataclasses.replace(ask(), **changes)], HALF)


def test_one_video_key_stands_for_one_video(llm):
    with pytest.raises(ValueError, match="request 1: video_key 'clip' stands for frames of another shape in request 0"):
        llm.answer([ask(2, video_key="clip"), ask(3, video_key="clip")], HALF)


def test_a_pruner_that_breaks_its_plan_is_caught(llm, monkeypatch):
    class Greedy(type(make_pruner(HALF))):
        def prune_input(self, videos):
            for kept in (decisions := super().prune_input(videos)):
                kept.keep, kept.values = kept.keep[1:], None
            return decisions

    monkeypatch.setattr("pipeline.engine.llm.make_pruner", Greedy)
    with pytest.raises(RuntimeError, match=r"'hieravid' kept .* at stage 0, its plan says"):
        llm.answer([ask()], HALF)


@pytest.mark.parametrize(
    ("cause", "told"),
    [(RuntimeError("bad kernel"), EncodeError), (torch.OutOfMemoryError("full"), torch.OutOfMemoryError)],
)
def test_failures_of_the_vision_tower_are_told_apart_from_full_memory(llm, monkeypatch, cause, told):
    def fail(*_):
        raise cause

    monkeypatch.setattr("pipeline.engine.encoding.encode_videos", fail)
    with pytest.raises(told, match=str(cause)):
        llm.answer([Request(make_video(2), "what", max_new_tokens=1)], PruningConfig(method="none"))
