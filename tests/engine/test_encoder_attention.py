"""The vision tower's attention, as pruners get it, is that of transformers' plain implementation."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.engine import Request
from pipeline.engine.families import attention_received
from pipeline.engine.families.siglip import SiglipTower
from pruning import Needs
from tests.engine.pruners import EvenPruner
from tests.engine.videos import make_video


def plain_attention(llm, reference, frames, layer=-1):
    """[T, side, side] float32: transformers' attention weights of one layer, mean over heads and queries."""
    pixels = llm._family.preprocess(torch.as_tensor(frames))
    weights = reference.model.vision_tower(pixels, output_attentions=True).attentions[layer]
    side = int(weights.shape[-1] ** 0.5)
    return weights.mean(dim=(1, 2)).unflatten(1, (side, side))


def pooled(attention):
    side = -(-attention.shape[-1] // 2)
    return F.interpolate(attention[:, None], size=(side, side), mode="bilinear").flatten()


@torch.inference_mode()
def test_attention_equals_transformers_plain_attention(pair, monkeypatch):
    llm, reference = pair
    videos = [make_video(3), make_video(2, seed=1)]
    for limit in (2**26, 1):  # all frames and heads at once, then one by one
        monkeypatch.setattr(attention_received, "_MAX_NUMBERS", limit)
        for frames, video in zip(videos, llm.encode(videos, attention=True), strict=True):
            expected = plain_attention(llm, reference, frames)
            assert expected.std() > 0.02 * expected.mean()  # else uniform attention would pass as well
            assert video.attention.dtype == torch.float32
            torch.testing.assert_close(video.attention, pooled(expected), atol=1e-7, rtol=1e-4)


def test_tokens_are_the_same_with_and_without_attention(pair):
    llm, _ = pair
    videos = [make_video(3), make_video(2, seed=1)]
    for plain, watched in zip(llm.encode(videos), llm.encode(videos, attention=True), strict=True):
        assert torch.equal(plain.tokens, watched.tokens)


@torch.inference_mode()
@pytest.mark.parametrize(("feature_layer", "layer"), [(-1, -1), (-2, -2), (2, 1), ([-2, 1], -2), (1, 0)])
def test_the_layer_is_the_last_one_whose_output_is_used(pair, feature_layer, layer):
    llm, reference = pair
    frames = make_video(2)
    tower = llm._family._model.model.vision_tower
    pixels = llm._family.preprocess(torch.as_tensor(frames))
    features, received = SiglipTower(tower, feature_layer)(pixels, with_attention=True)
    expected = plain_attention(llm, reference, frames, layer).flatten(1)
    torch.testing.assert_close(received, expected, atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(received.sum(dim=1), torch.ones(2))
    states = reference.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    wanted = [feature_layer] if isinstance(feature_layer, int) else feature_layer
    torch.testing.assert_close(features, torch.cat([states[index] for index in wanted], dim=-1), atol=1e-5, rtol=1e-4)


def test_a_pruner_gets_it_at_the_input_and_only_if_it_asks(llm):
    videos = [make_video(3), make_video(2, seed=1)]
    expected = [video.attention for video in llm.encode(videos, attention=True)]
    requests = [Request(frames, "what", max_new_tokens=1, seed=number) for number, frames in enumerate(videos)]
    asking = EvenPruner(needs=Needs(encoder_attention=True))
    llm.answer(requests, asking)
    stage_0 = [view for view in asking.seen if view.encoder_attention is not None]
    assert [len(view.index) for view in stage_0] == [48, 32]
    for view in stage_0:
        torch.testing.assert_close(view.encoder_attention, expected[view.seed])
    silent = EvenPruner()
    llm.answer(requests, silent)
    assert all(view.encoder_attention is None and view.prompt is None for view in silent.seen)
