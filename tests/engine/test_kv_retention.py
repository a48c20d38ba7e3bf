"""With `kv_retention` the cache keeps the video entries that the end of the prompt looks at; nothing else changes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import Request
from pipeline.engine.kv_retention import retained_entries
from pruning import PruningConfig, make_pruner
from tests.engine.prefilled import admitted, prefill
from tests.engine.reference import embed, prompt_inputs
from tests.engine.videos import make_video

PROMPTS = ["what happens", "", "describe the video please, in one short sentence"]


def ask(prompt, frames=5, **options):
    return Request(make_video(frames, seed=frames), prompt, max_new_tokens=4, **options)


def run(llm, method, retention, kv_retention, requests):
    pruner = make_pruner(PruningConfig(method=method))
    return prefill(llm, pruner, admitted(llm, requests, pruner, retention, kv_retention))


def slow_received(query, key, asked):
    """What each key receives from the last `asked` tokens, one softmax at a time, in float64."""
    heads, size = query.shape[1:]
    received = torch.zeros(len(key), dtype=torch.float64)
    for back in range(1, asked + 1):
        visible = len(key) - back + 1
        for head in range(heads):
            scores = key[:visible, head * key.shape[1] // heads].double() @ query[-back, head].double() / size**0.5
            received[:visible] += scores.softmax(dim=0) / (asked * heads)
    return received


@given(
    before=st.integers(0, 3),
    video=st.integers(1, 30),
    after=st.integers(1, 40),
    groups=st.integers(1, 3),
    share=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_kept_entries_are_those_of_a_slow_reference(before, video, after, groups, share, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens, end = before + video + after, before + video
    key = torch.randn(tokens, 2, 4, generator=generator)
    query = torch.randn(after, 2 * groups, 4, generator=generator)
    count = math.ceil(share * video)
    entries = retained_entries(query, key, before, after, count).tolist()
    assert entries == sorted(entries)
    assert set(entries) >= {*range(before), *range(end, tokens)}
    kept = [entry for entry in entries if before <= entry < end]
    received = slow_received(query, key, min(after, 32))
    assert len(kept) == count
    assert received[kept].sort().values.tolist() == pytest.approx(
        received[before:end].sort().values[-count:].tolist(), abs=1e-6
    )


def test_entries_that_receive_the_same_tie_by_index():
    query, key = torch.randn(3, 2, 4), torch.zeros(30, 1, 4)
    assert retained_entries(query, key, 2, 3, 4).tolist() == [0, 1, 2, 3, 4, 5, 27, 28, 29]


@torch.inference_mode()
def test_judged_by_transformers_own_attention_weights(pair):
    llm, reference = pair
    for request, whole, own in zip(
        requests := [ask(prompt) for prompt in PROMPTS],
        run(llm, "none", 1.0, 1.0, requests),
        run(llm, "none", 1.0, 0.3, requests),
        strict=True,
    ):
        hidden, _ = embed(reference, prompt_inputs(llm, reference, request), [0])
        output = reference.model.language_model(inputs_embeds=hidden, output_attentions=True, use_cache=False)
        before, video = len(own.sequence.prompt.before), own.sequence.grid.tokens
        asked = min(32, hidden.shape[1] - before - video)
        for layer, weights in enumerate(output.attentions):
            received = weights[0, :, -asked:].mean(dim=(0, 1))
            best = received[before : before + video].topk(math.ceil(0.3 * video)).indices.sort().values + before
            rows = torch.cat((torch.arange(before), best, torch.arange(before + video, hidden.shape[1])))
            for kept, part in zip(own.cache[layer], whole.cache[layer], strict=True):
                assert torch.equal(kept, part[:, rows])


@pytest.mark.parametrize("method", ["hieravid", "uniform"])
@pytest.mark.parametrize("kv_retention", [0.5, 0.01])
def test_only_the_cache_is_smaller(llm, method, kv_retention):
    requests = [ask(prompt, frames, is_traced=True) for prompt, frames in zip(PROMPTS, (5, 1, 8), strict=True)]
    whole = run(llm, method, 0.4, 1.0, requests)
    part = run(llm, method, 0.4, kv_retention, requests)
    for full, own in zip(whole, part, strict=True):
        torch.testing.assert_close(own.logits, full.logits, atol=1e-5, rtol=0)
        assert (own.trace.alive_until == full.trace.alive_until).all()
        before, text = len(own.sequence.prompt.before), own.sequence.text_tokens
        for layer, (kept, entries) in enumerate(zip(own.cache, full.cache, strict=True)):
            video = own.sequence.plan.attention_tokens()[layer]
            assert kept[0].shape[1] == math.ceil(kv_retention * video) + text
            places = locate(kept[0], entries[0])
            assert places == sorted(places)
            assert set(places) >= {*range(before), *range(before + video, video + text)}
            torch.testing.assert_close(kept[1], entries[1][:, places], atol=1e-5, rtol=0)


def locate(kept, entries):
    """Where each of the keys `kept` [heads, n, size] stands among `entries`: no two of one rotation are equal."""
    distance = (kept[:, :, None] - entries[:, None]).abs().amax(dim=(0, 3))
    assert (distance.min(dim=1).values < 1e-4).all()
    return distance.argmin(dim=1).tolist()


def test_sequences_that_share_a_prefix_each_keep_their_own(llm):
    shared = [ask(prompt, video_key="v") for prompt in PROMPTS]
    together = run(llm, "none", 1.0, 0.3, shared)
    for request, own in zip(shared, together, strict=True):
        [alone] = run(llm, "none", 1.0, 0.3, [request])
        for one, other in zip(own.cache, alone.cache, strict=True):
            for part, its in zip(one, other, strict=True):
                torch.testing.assert_close(part, its, atol=1e-4, rtol=0)
    assert not torch.equal(together[0].cache[0][0][:, :20], together[1].cache[0][0][:, :20])
