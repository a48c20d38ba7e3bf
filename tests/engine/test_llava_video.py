"""LLaVA-Video computes what its published code does: grid, newlines, both poolings, prompt, and pruning on top."""

import numpy as np
import pytest
import torch

from pipeline.engine import Request, VideoLLM
from pipeline.engine.families.llava_video import LlavaVideo
from pipeline.engine.families.llava_video_model import LlavaVideoModel
from pruning import Needs, PruningConfig
from tests.engine.checkpoints_llava_video import SHAPES, Parts, write_checkpoint
from tests.engine.llava_video_reference import NotingPruner, log_probabilities, received_attention, video_tokens
from tests.engine.pruners import EvenPruner
from tests.engine.videos import make_video

ANSWER = tuple(b"a red circle moves to the left.")
PROMPTS = ["what happens", "describe the video please, in one short sentence", "", "how many?"]


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory):
    """An engine, and the parts that its checkpoint was written from."""
    shape = SHAPES[request.param]
    folder = write_checkpoint(tmp_path_factory.mktemp(request.param), shape)
    return VideoLLM.load(folder, device="cpu"), Parts(shape)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return VideoLLM.load(write_checkpoint(tmp_path_factory.mktemp("model"), SHAPES["bilinear"]), device="cpu")


def requests_of(sizes=(7, 1, 4, 5), **options):
    return [
        Request(make_video(frames, seed=n), PROMPTS[n], forced_token_ids=ANSWER[: 9 + n], seed=n, **options)
        for n, frames in enumerate(sizes)
    ]


def pixels_of(llm, frames):
    return llm._family.preprocess(torch.as_tensor(frames))


@torch.inference_mode()
def test_video_tokens_are_those_computed_by_hand(pair):
    llm, parts = pair
    videos = [make_video(3), make_video(2, seed=1)]
    for frames, video in zip(videos, llm.encode(videos), strict=True):
        expected = torch.cat(video_tokens(parts, pixels_of(llm, frames)))
        assert expected.std() > 0.1
        torch.testing.assert_close(video.tokens, expected, atol=1e-4, rtol=1e-4)
        assert video.tokens.shape[0] == llm.grid(len(frames)).tokens


def test_the_grid_names_the_newlines_and_the_length_of_a_row(pair):
    llm, parts = pair
    grid = llm.grid(6)
    assert grid == llm.grid(6, (40, 56))
    # 7 or 8 patches a side: 4 tokens, or 3 where 7 are averaged
    side = 3 if parts.shape.pool_mode == "average" else 4
    assert (grid.frames, grid.positions, grid.columns) == (6, side * (side + 1), side + 1)
    assert grid.constants == tuple(row * (side + 1) + side for row in range(side))
    tokens = llm.encode([make_video(6)])[0].tokens.view(6, side, side + 1, -1)
    assert torch.equal(tokens[:, :, -1], parts.newline.expand(6, side, -1))


@torch.inference_mode()
def test_attention_is_that_of_the_last_layer_that_is_run_and_newlines_receive_none(pair):
    llm, parts = pair
    videos = [make_video(3), make_video(2, seed=1)]
    plain = llm.encode(videos)
    for frames, without, video in zip(videos, plain, llm.encode(videos, attention=True), strict=True):
        expected = torch.cat(received_attention(parts, pixels_of(llm, frames)))
        assert expected[expected > 0].std() > 0.02 * expected.mean()  # else uniform attention would pass as well
        torch.testing.assert_close(video.attention, expected, atol=1e-7, rtol=1e-4)
        assert (video.attention.view(len(frames), -1)[:, list(llm.grid(1).constants)] == 0).all()
        assert torch.equal(video.tokens, without.tokens)


def test_methods_get_the_attention_that_they_ask_for(llm):
    videos = [make_video(3), make_video(2, seed=1)]
    expected = [video.attention for video in llm.encode(videos, attention=True)]
    pruner = EvenPruner(needs=Needs(encoder_attention=True))
    llm.answer([Request(frames, "what", max_new_tokens=1, seed=n) for n, frames in enumerate(videos)], pruner)
    views = [view for view in pruner.seen if view.encoder_attention is not None]
    assert [len(view.index) for view in views] == [60, 40]
    for view in views:
        torch.testing.assert_close(view.encoder_attention, expected[view.seed])


def reference_of(llm, parts, request, pruner=None):
    tokens = torch.cat(video_tokens(parts, pixels_of(llm, request.frames)))
    prompt = llm._family.tokenize(request.prompt)
    plan, kept = (None, None) if pruner is None else (pruner.plans[request.seed], pruner.kept[request.seed])
    return log_probabilities(parts, prompt, tokens, list(request.forced_token_ids), plan, kept)


@torch.inference_mode()
def test_the_whole_forward_is_that_of_the_parts_connected_by_hand(pair):
    llm, parts = pair
    requests = requests_of()
    for request, answer in zip(requests, llm.answer(requests, PruningConfig(method="none")), strict=True):
        expected = reference_of(llm, parts, request)
        assert expected.std() > 0.1
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-3, rtol=0)


@torch.inference_mode()
def test_the_hand_made_forward_is_transformers_own(pair):
    llm, parts = pair
    request = requests_of()[0]
    prompt = llm._family.tokenize(request.prompt)
    tokens = torch.cat(video_tokens(parts, pixels_of(llm, request.frames)))
    embed = parts.llm.get_input_embeddings()
    before, after = (embed(torch.tensor(ids)) for ids in (prompt.before, [*prompt.after, *ANSWER[:-1]]))
    logits = parts.llm(inputs_embeds=torch.cat((before, tokens, after))[None]).logits[0, -len(ANSWER) :]
    expected = logits.log_softmax(dim=-1)[range(len(ANSWER)), torch.tensor(ANSWER)]
    torch.testing.assert_close(log_probabilities(parts, prompt, tokens, list(ANSWER)), expected, atol=1e-4, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("method", ["hieravid", "random"])
def test_pruned_runs_equal_taking_the_tokens_out_by_hand(pair, method):
    llm, parts = pair
    pruner = NotingPruner(method)
    requests = requests_of(retention=0.3)
    for request, answer in zip(requests, llm.answer(requests, pruner), strict=True):
        assert len(pruner.kept[request.seed]) > 1 or method == "random"
        expected = reference_of(llm, parts, request, pruner)
        torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-3, rtol=0)


@torch.inference_mode()
def test_answers_are_the_same_alone_and_together(llm):
    requests = [Request(make_video(n, seed=n), PROMPTS[n % 4], max_new_tokens=6, seed=n) for n in (1, 3, 6)]
    for retention in (1.0, 0.3):
        pruning = PruningConfig(method="hieravid", retention=retention)
        together = llm.answer(requests, pruning)
        for request, answer in zip(requests, together, strict=True):
            [alone] = llm.answer([request], pruning)
            assert (alone.token_ids, alone.stats.stage_tokens) == (answer.token_ids, answer.stats.stage_tokens)


def test_newlines_never_merge_with_the_picture_and_keep_their_vector(pair):
    llm, parts = pair
    pruner = NotingPruner("hieravid")
    request = Request(make_video(9, scenes=1), "what", max_new_tokens=1, retention=0.3, is_traced=True)
    [answer] = llm.answer([request], pruner)
    grid, [index, kept] = llm.grid(9), pruner.kept[0][0]
    is_newline = torch.isin(index % grid.positions, torch.tensor(grid.constants))
    merged = kept.merged_into >= 0
    assert torch.equal(is_newline[kept.merged_into[merged]], is_newline[merged])
    newlines = kept.values[is_newline[kept.keep]]
    assert len(newlines) > 0
    assert (kept.merged_into[is_newline] != index[is_newline]).any()
    torch.testing.assert_close(newlines, parts.newline.expand_as(newlines))
    assert answer.stats.video_tokens == grid.tokens  # they count


def test_a_cut_is_seen_although_the_newlines_stay_the_same(llm):
    """Newlines are a fifth of the positions here: if they counted, no frame would repeat less than a tenth."""
    video = np.concatenate([make_video(1, seed=1).repeat(3, axis=0), make_video(1, seed=2).repeat(3, axis=0)])
    pruner = NotingPruner("hieravid", tau=0.9999, beta=0.1)
    llm.answer([Request(video, "what", max_new_tokens=1, retention=0.5)], pruner)
    _, kept = pruner.kept[0][0]
    assert kept.segment_starts == (0, 3)


def test_the_prompt_stands_in_the_language_models_own_template(llm):
    family = llm._family
    prompt = family.tokenize("what moves?")
    assert prompt.tail == 0
    decode = family._chat.tokenizer.decode
    assert decode(prompt.before) == "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n"
    assert decode(prompt.after) == "\nwhat moves?<|im_end|>\n<|im_start|>assistant\n"
    before, after = family.embed_prompt(prompt)
    assert torch.equal(torch.cat((before, after)), family.decoder.embed([*prompt.before, *prompt.after]))


def test_the_place_holder_is_refused_in_a_prompt(llm):
    with pytest.raises(ValueError, match="must not contain <image>"):
        llm.answer([Request(make_video(1), "an <image> of what?")], PruningConfig())


@pytest.mark.parametrize("prompt", ["what color is the circle?", "user", "a\nb", " naïve  🙂 ", ""])
def test_the_users_words_are_embedded_alone(llm, prompt):
    ids = llm._family._chat.tokenizer(prompt, add_special_tokens=False).input_ids
    assert torch.equal(llm._family.embed_user_prompt(prompt), llm._family.decoder.embed(ids))


def test_the_time_instruction_is_that_of_the_training(llm):
    assert llm._family.time_instruction((0.0, 10.333333, 20.666), 31) == (
        "The video lasts for 31.00 seconds, and 3 frames are uniformly sampled from it. These frames are located "
        "at 0.00s,10.33s,20.67s.Please answer the following questions related to this video."
    )


def test_positions_count_the_unpruned_sequence(llm):
    family = llm._family
    prompt, grid = family.tokenize("what"), family.grid(3)
    length = grid.tokens + len(prompt.before) + len(prompt.after)
    assert family.positions(prompt, grid).tolist() == list(range(length))
    assert family.next_position(prompt, grid) == length


def test_both_end_tokens_end_an_answer(llm):
    family = llm._family
    ends = [family._chat.tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")]
    assert [i for i in range(260) if family.is_end(i)] == ends
    assert family.decode_text([*b"red", ends[1]]) == family._chat.tokenizer.decode(list(b"red"))


def test_a_random_model_needs_no_checkpoint(llm):
    """Its parts are enough, so that speed can be measured without one."""
    model = LlavaVideoModel(llm._family._model.config)
    family = LlavaVideo(model.eval(), llm._family._chat, llm._family._preprocessor)
    with torch.inference_mode():
        tokens, attention = family.encode(family.preprocess(torch.as_tensor(make_video(2))), with_attention=True)
    assert (tokens.shape, attention.shape) == ((2, 20, 64), (2, 20))
    assert torch.isfinite(tokens).all()
