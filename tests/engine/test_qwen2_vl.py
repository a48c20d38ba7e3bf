"""Qwen2-VL answers as transformers does, at 1.0 and pruned, whatever the sizes and numbers of frames."""

import itertools

import pytest
import torch

from pipeline.engine import EncodedVideo, Request, VideoLLM
from pruning import Needs, PruningConfig
from tests.engine.checkpoints_qwen2_vl import SHAPES, write_checkpoint
from tests.engine.pruners import EvenPruner
from tests.engine.recording import answer_traced
from tests.engine.reference_qwen2_vl import dense_logits, load_reference, masked_run, patches_of, prompt_inputs
from tests.engine.videos import make_video

TOLERANCE = 1e-3
MARGIN = 1e-4
DENSE = PruningConfig(method="none")

# frames, height, width, prompt: odd counts, tall, wide, tiny and large frames, more steps than tokens a side
ASKED = [
    (7, 40, 56, "what happens"),
    (1, 56, 40, "describe the video please, in one short sentence"),
    (4, 24, 100, ""),
    (2, 9, 11, "how many?"),
    (5, 90, 120, "red or blue"),
    (23, 16, 24, "how long"),
]


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory):
    """An engine and transformers' own model on the same checkpoint."""
    folder = write_checkpoint(tmp_path_factory.mktemp(request.param), SHAPES[request.param])
    return VideoLLM.load(folder, device="cpu", dtype="float32"), load_reference(folder)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return VideoLLM.load(write_checkpoint(tmp_path_factory.mktemp("model"), SHAPES["grouped"]), device="cpu")


def requests(max_new_tokens=10):
    """Requests of different sizes, prompts and answer lengths; seeds tell them apart."""
    return [
        Request(
            make_video(frames, height, width, scenes=1 + number % 3, seed=number),
            prompt,
            max_new_tokens=max_new_tokens - number % 3,
            seed=number,
        )
        for number, (frames, height, width, prompt) in enumerate(ASKED)
    ]


def close_calls(logits, token_ids):
    """How many of the chosen tokens were closer than MARGIN; the others are the first choices of `logits`."""
    best = logits.topk(2, dim=-1)
    is_close = best.values[:, 0] - best.values[:, 1] <= MARGIN
    assert (best.indices[:, 0] == torch.tensor(token_ids))[~is_close].all()
    return int(is_close.sum())


@pytest.mark.parametrize("is_batched", [False, True], ids=["alone", "ragged batch"])
def test_unpruned_logits_equal_transformers_forward(pair, is_batched):
    llm, reference = pair
    asked = requests()
    compared = close = 0
    for group in [asked] if is_batched else [[request] for request in asked]:
        answers, traces = answer_traced(llm, group, PruningConfig(method="hieravid", retention=1.0))
        for request, answer, trace in zip(group, answers, traces, strict=True):
            expected = dense_logits(reference, prompt_inputs(llm, reference, request), answer.token_ids)
            assert expected.std() > 0.1  # a model whose logits are all alike would pass anything
            torch.testing.assert_close(torch.stack(trace.logits), expected, atol=TOLERANCE, rtol=0)
            compared += len(answer.token_ids)
            close += close_calls(expected, answer.token_ids)
    assert compared >= len(asked)
    assert close <= 0.01 * compared


def test_unpruned_tokens_equal_transformers_generate(pair):
    llm, reference = pair
    asked = requests()
    for request, answer in zip(asked, llm.answer(asked, DENSE), strict=True):
        inputs = prompt_inputs(llm, reference, request)
        generated = reference.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert answer.token_ids == generated.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        assert close_calls(torch.cat(generated.logits), answer.token_ids) == 0


def test_pruned_run_equals_masking_the_dropped_tokens(pair):
    llm, reference = pair
    asked = requests()
    for method, retention in itertools.product(("hieravid", "random"), (0.5, 0.2)):
        answers, traces = answer_traced(llm, asked, PruningConfig(method=method, retention=retention))
        for request, answer, trace in zip(asked, answers, traces, strict=True):
            inputs = prompt_inputs(llm, reference, request)
            expected = masked_run(reference, inputs, answer.token_ids, trace.plan, trace.decisions)
            for layer, (own, other) in enumerate(zip(trace.cache, expected.cache, strict=True)):
                for own_part, other_part in zip(own, other, strict=True):
                    entries = trace.plan.attention_tokens()[layer] + answer.stats.prompt_tokens
                    assert own_part.shape[1] == entries
                    torch.testing.assert_close(own_part, other_part, atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(torch.stack(trace.logits), expected.logits, atol=TOLERANCE, rtol=0)
        if method == "hieravid":
            assert any(trace.decisions[0].values is not None for trace in traces)  # merged tokens were among them


@pytest.mark.parametrize("retention", [1.0, 0.3])
def test_kept_tokens_and_answers_do_not_depend_on_the_batch(pair, retention):
    llm, _ = pair
    asked = requests()
    pruning = PruningConfig(method="hieravid", retention=retention)
    together, traces = answer_traced(llm, asked, pruning)
    for request, answer, trace in zip(asked, together, traces, strict=True):
        [alone], [own] = answer_traced(llm, [request], pruning)
        assert alone.token_ids == answer.token_ids
        assert alone.stats.stage_tokens == answer.stats.stage_tokens
        for stage, decision in own.decisions.items():
            assert torch.equal(decision.index, trace.decisions[stage].index)


@pytest.mark.parametrize("frames", [1, 2, 7, 40])
def test_positions_are_those_of_get_rope_index(pair, frames):
    llm, reference = pair
    family = llm._family
    for height, width in ((40, 56), (90, 30), (16, 16)):
        request = Request(make_video(frames, height, width), "what happens")
        inputs = prompt_inputs(llm, reference, request)
        expected, delta = reference.model.get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], video_grid_thw=inputs["video_grid_thw"]
        )
        prompt, grid = family.tokenize(request.prompt), family.grid(frames, (height, width))
        assert torch.equal(family.positions(prompt, grid), expected[:, 0])
        assert family.next_position(prompt, grid) == int(expected.max()) + 1
        assert family.next_position(prompt, grid) == inputs["input_ids"].shape[1] + int(delta)


def test_the_grid_is_that_of_the_tokens_and_grows_to_the_budget(llm):
    family = llm._family
    shape = SHAPES["grouped"]
    for (frames, height, width, _), request in zip(ASKED, requests(), strict=True):
        grid = family.grid(frames, (height, width))
        [video] = llm.encode([request.frames])
        assert (video.frames, video.size, len(video.tokens)) == (frames, (height, width), grid.tokens)
        assert grid.frames == (frames + 1) // 2
        assert grid.positions <= shape.max_pixels // shape.token_side**2
        rows = grid.positions // grid.columns
        assert rows * grid.columns == grid.positions
        assert (rows > grid.columns) == (height > width)
    largest = family.grid(5)
    assert (largest.frames, largest.positions, largest.columns) == (3, 20, 5)
    assert llm.info.tokens_per_frame == 10  # two frames share the 20


def test_video_tokens_equal_transformers_vision_tower(pair):
    llm, reference = pair
    videos = [request.frames for request in requests()]
    for frames, video in zip(videos, llm.encode(videos), strict=True):
        expected = reference.get_video_features(*patches_of(llm, frames)).pooler_output[0]
        torch.testing.assert_close(video.tokens, expected, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_encoder_attention_is_that_of_the_last_block(pair, monkeypatch):
    llm, reference = pair
    videos = [make_video(5), make_video(2, 90, 30, seed=1)]
    for limit in (2**26, 1):  # all steps and heads at once, then one by one
        monkeypatch.setattr("pipeline.engine.families.attention_received._MAX_NUMBERS", limit)
        for frames, video in zip(videos, llm.encode(videos, attention=True), strict=True):
            expected = plain_attention(reference, *patches_of(llm, frames))
            assert expected.std() > 0.02 * expected.mean()  # else uniform attention would pass as well
            assert video.attention.dtype == torch.float32
            torch.testing.assert_close(video.attention, expected, atol=1e-7, rtol=1e-4)
    for plain, watched in zip(llm.encode(videos), llm.encode(videos, attention=True), strict=True):
        assert torch.equal(plain.tokens, watched.tokens)


def plain_attention(reference, pixels, grid):
    """[N] float32: transformers' attention weights in the tower's last block, mean over heads, queries and patches."""
    last = reference.model.visual.blocks[-1].attn
    seen = []
    hook = last.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    reference.get_video_features(pixels, grid)
    hook.remove()
    [(args, kwargs)] = seen
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    cos, sin = kwargs["position_embeddings"]
    query, key, _ = last.qkv(hidden).reshape(len(hidden), 3, last.num_heads, -1).unbind(dim=1)
    half = query.shape[-1] // 2
    query, key = (
        part * cos[:, None] + torch.cat((-part[..., half:], part[..., :half]), dim=-1) * sin[:, None]
        for part in (query, key)
    )
    received = []
    for rows in torch.arange(len(hidden)).view(int(grid[0, 0]), -1):  # attention stays inside a step
        scores = torch.einsum("qhd,khd->hqk", query[rows], key[rows]) / query.shape[-1] ** 0.5
        received.append(scores.softmax(dim=-1).mean(dim=(0, 1)))
    return torch.cat(received).view(-1, 4).mean(dim=1)


def test_encoded_videos_are_answered_like_their_frames(llm):
    asked = requests()
    half = PruningConfig(method="hieravid", retention=0.5)
    encoded = llm.encode([request.frames for request in asked])
    brought = [
        Request(video, request.prompt, max_new_tokens=request.max_new_tokens, seed=request.seed)
        for video, request in zip(encoded, asked, strict=True)
    ]
    own, others = llm.answer(asked, half), llm.answer(brought, half)
    assert [a.token_ids for a in others] == [a.token_ids for a in own]
    assert [a.stats.stage_tokens for a in others] == [a.stats.stage_tokens for a in own]


def test_an_encoded_video_must_have_the_tokens_of_its_size(llm):
    [video] = llm.encode([make_video(5)])
    without = EncodedVideo(video.tokens, video.frames)
    with pytest.raises(ValueError, match=r"request 0: .* tokens of shape \[60, 64\] in this model, not \[45, 64\]"):
        llm.answer([Request(without, "what")], DENSE)


def test_pruners_get_the_grid_and_the_attention_of_steps(llm):
    pruner = EvenPruner(needs=Needs(encoder_attention=True, prompt=True))
    llm.answer(requests(max_new_tokens=3), pruner)
    stage_0 = [view for view in pruner.seen if view.encoder_attention is not None]
    assert len(stage_0) == len(ASKED)
    for view in stage_0:
        frames, height, width, prompt = ASKED[view.seed]
        assert view.grid == llm.grid(frames, (height, width))
        assert view.encoder_attention.shape == (view.grid.tokens,)
        assert view.prompt.shape == (len(prompt), 64)


def test_one_key_for_encoded_videos_of_equal_length_and_other_grids_is_refused(llm):
    flat, tall = llm.encode([make_video(2, 16, 32), make_video(2, 32, 16)])
    assert flat.tokens.shape == tall.tokens.shape
    with pytest.raises(ValueError, match=r"^request 1: video_key 'v' stands for frames of another shape in request 0$"):
        llm.answer([Request(video, "what", max_new_tokens=1, video_key="v") for video in (flat, tall)], DENSE)


def test_frames_that_are_far_too_narrow_are_refused(llm):
    with pytest.raises(ValueError, match=r"^request 0: frames of 2x402 pixels are narrower than 1:200"):
        llm.answer([Request(torch.zeros(1, 2, 402, 3, dtype=torch.uint8), "what")], DENSE)


def test_half_precision_runs(llm, tmp_path):
    half = VideoLLM.load(write_checkpoint(tmp_path, SHAPES["grouped"]), device="cpu", dtype="bfloat16")
    videos = [request.frames for request in requests()]
    for own, exact in zip(half.encode(videos), llm.encode(videos), strict=True):
        assert own.tokens.dtype == torch.bfloat16
        assert torch.nn.functional.cosine_similarity(own.tokens.float(), exact.tokens).min() > 0.99
