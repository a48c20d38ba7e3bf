"""Retention 1.0 is transformers' own model; pruned runs are a model that keeps all tokens and masks the dropped."""

import itertools

import pytest
import torch

from pipeline.engine import Request, VideoLLM
from pruning import Kept, Needs, PruningConfig, StagePlan
from tests.engine.checkpoints import Shape, write_checkpoint
from tests.engine.recording import answer_traced
from tests.engine.reference import dense_logits, embed, load_reference, masked_run, prompt_inputs
from tests.engine.videos import make_video

TOLERANCE = 1e-3
MARGIN = 1e-4
NEW_TOKENS = 24
PROMPTS = ["what happens", "describe the video please, in one short sentence", "", "how many?", "red or blue"]


def ragged_requests(sizes=(7, 1, 4, 5, 2), max_new_tokens=NEW_TOKENS):
    """Requests with different frame counts, prompts and answer lengths; seeds tell them apart."""
    return [
        Request(
            make_video(frames, scenes=1 + number % 3, seed=number),
            PROMPTS[number],
            max_new_tokens=max_new_tokens - number,
            seed=number,
        )
        for number, frames in enumerate(sizes)
    ]


class Choices:
    """Compares chosen tokens with a reference's first choices; calls closer than MARGIN are counted, not compared."""

    def __init__(self):
        self.compared = self.close = 0

    def compare(self, logits, token_ids):
        best = logits.topk(2, dim=-1)
        is_close = best.values[:, 0] - best.values[:, 1] <= MARGIN
        assert (best.indices[:, 0] == torch.tensor(token_ids))[~is_close].all()
        self.compared += len(token_ids)
        self.close += int(is_close.sum())

    def assert_few_are_close(self):
        assert self.compared >= 10
        assert self.close <= 0.01 * self.compared


@pytest.mark.parametrize("is_batched", [False, True], ids=["alone", "ragged batch"])
def test_unpruned_logits_equal_transformers_forward(pair, is_batched):
    llm, reference = pair
    requests = ragged_requests()
    groups = [requests] if is_batched else [[request] for request in requests]
    choices = Choices()
    for pruning in (PruningConfig(method="hieravid", retention=1.0), PruningConfig(method="none")):
        for group in groups:
            answers, traces = answer_traced(llm, group, pruning)
            for request, answer, trace in zip(group, answers, traces, strict=True):
                expected = dense_logits(reference, prompt_inputs(llm, reference, request), answer.token_ids)
                assert expected.std() > 0.1  # a model whose logits are all alike would pass anything
                torch.testing.assert_close(torch.stack(trace.logits), expected, atol=TOLERANCE, rtol=0)
                choices.compare(expected, answer.token_ids)
    choices.assert_few_are_close()


def test_unpruned_tokens_equal_transformers_generate(pair):
    llm, reference = pair
    requests = ragged_requests()
    answers = llm.answer(requests, PruningConfig(method="none"))
    compared = close = 0
    for request, answer in zip(requests, answers, strict=True):
        inputs = prompt_inputs(llm, reference, request)
        generated = reference.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=request.max_new_tokens,
            output_logits=True,
            return_dict_in_generate=True,
        )
        expected = generated.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        for step, logits in enumerate(generated.logits):
            best = logits[0].topk(2).values
            compared += 1
            if best[0] - best[1] <= MARGIN:
                close += 1
                break  # from here on both may continue different texts
            assert answer.token_ids[step] == expected[step]
        else:
            assert answer.token_ids == expected
    assert compared >= len(requests)
    assert close <= 0.01 * compared


def test_pruned_run_equals_masking_the_dropped_tokens(pair):
    llm, reference = pair
    requests = ragged_requests()
    choices = Choices()
    for method, retention in itertools.product(("hieravid", "uniform", "random"), (0.5, 0.2)):
        pruning = PruningConfig(method=method, retention=retention)
        answers, traces = answer_traced(llm, requests, pruning)
        for request, answer, trace in zip(requests, answers, traces, strict=True):
            compare_with_masking(llm, reference, request, answer, trace)
            choices.compare(torch.stack(trace.logits), answer.token_ids)
    choices.assert_few_are_close()


def compare_with_masking(llm, reference, request, answer, trace):
    """KV lengths and contents of every layer, and the logits of every answer token."""
    stats = answer.stats
    plan = trace.plan
    for stage, decision in trace.decisions.items():
        assert decision.index.shape[0] == stats.stage_tokens[stage]
    inputs = prompt_inputs(llm, reference, request)
    expected = masked_run(reference, inputs, answer.token_ids, plan, trace.decisions)
    for layer, (own, other) in enumerate(zip(trace.cache, expected.cache, strict=True)):
        for own_part, other_part in zip(own, other, strict=True):
            assert own_part.shape[1] == plan.attention_tokens()[layer] + stats.prompt_tokens
            torch.testing.assert_close(own_part, other_part, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(torch.stack(trace.logits), expected.logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_a_stage_in_the_last_layer_changes_nothing(tmp_path, layers):
    folder = write_checkpoint(tmp_path, Shape(layers=layers))
    llm, reference = VideoLLM.load(folder, device="cpu"), load_reference(folder)
    requests = ragged_requests(max_new_tokens=8)
    answers, traces = answer_traced(llm, requests, PruningConfig(method="hieravid", retention=0.3))
    for request, answer, trace in zip(requests, answers, traces, strict=True):
        assert answer.stats.stage_layers[-1] == layers - 1
        compare_with_masking(llm, reference, request, answer, trace)


def test_the_masking_reference_covers_merged_values_and_late_stages(pair):
    llm, _ = pair
    _, traces = answer_traced(llm, ragged_requests(), PruningConfig(method="hieravid", retention=0.3))
    assert any(trace.decisions[0].values is not None for trace in traces)
    assert any(len(trace.decisions) >= 3 for trace in traces)


@pytest.mark.parametrize("method", ["hieravid", "random"])
def test_kept_tokens_and_answers_do_not_depend_on_the_batch(pair, method):
    llm, _ = pair
    requests = ragged_requests()
    pruning = PruningConfig(method=method, retention=0.3)
    together, traces = answer_traced(llm, requests, pruning)
    for request, answer, trace in zip(requests, together, traces, strict=True):
        [alone], [own] = answer_traced(llm, [request], pruning)
        assert alone.token_ids == answer.token_ids
        assert alone.stats.stage_tokens == answer.stats.stage_tokens
        assert own.decisions.keys() == trace.decisions.keys()
        for stage, decision in own.decisions.items():
            assert torch.equal(decision.index, trace.decisions[stage].index)
        torch.testing.assert_close(torch.stack(own.logits), torch.stack(trace.logits), atol=TOLERANCE, rtol=0)


class StaggeredPruner:
    """Stages that start at different layers in different videos, and values that change at every stage."""

    name = "staggered"
    needs = Needs(last_token_attention=True)

    def plan(self, grid, num_layers, retention):
        tokens = grid.tokens
        layers = (0, 1, 3) if grid.frames % 2 else (0, 2, 3)
        return StagePlan(tokens, num_layers, layers, (tokens - 1, max(1, tokens // 2), max(1, tokens // 5)))

    def prune_input(self, videos):
        return self.prune_layer(0, videos)

    def prune_layer(self, stage, videos):
        kept = []
        for video in videos:
            score = video.hidden.sum(dim=1) if video.attention is None else video.attention
            keep = score.topk(video.plan.counts[stage]).indices.sort().values
            kept.append(Kept(keep, values=video.hidden[keep] * 0.9, state=(video.state or 0) + 1))
        return kept


def test_videos_may_start_stages_at_different_layers_and_change_values_there(pair):
    llm, reference = pair
    requests = ragged_requests(max_new_tokens=8)
    answers, traces = answer_traced(llm, requests, PruningConfig(), StaggeredPruner())
    assert len({trace.plan.layers for trace in traces}) == 2
    for request, answer, trace in zip(requests, answers, traces, strict=True):
        assert len(trace.decisions) == 3
        compare_with_masking(llm, reference, request, answer, trace)


def test_attention_given_to_a_pruner_is_that_of_the_last_prompt_token(pair):
    llm, reference = pair
    seen = []

    class Watching(StaggeredPruner):
        def prune_layer(self, stage, videos):
            seen.extend((video.seed, stage, video.index.clone(), video.attention) for video in videos)
            return super().prune_layer(stage, videos)

    requests = ragged_requests(max_new_tokens=8)
    answer_traced(llm, requests, PruningConfig(), Watching())
    checked = 0
    for seed, stage, index, attention in seen:
        if stage == 0:
            assert attention is None
        elif stage == 1:  # nothing but the input was pruned so far: transformers' own weights on a shorter prompt
            inputs = prompt_inputs(llm, reference, requests[seed])
            expected = first_stage_attention(reference, inputs, index, layer=1 if len(requests[seed].frames) % 2 else 2)
            torch.testing.assert_close(attention, expected, atol=1e-5, rtol=1e-3)
            checked += 1
    assert checked == len(requests)


@torch.inference_mode()
def first_stage_attention(reference, inputs, index, layer):
    """Mean over heads of transformers' attention weights from the last token to the video tokens `index`."""
    hidden, place = embed(reference, inputs, [0])
    hidden[0, place[index]] *= 0.9
    is_live = torch.ones(hidden.shape[1], dtype=torch.bool)
    is_live[place] = False
    is_live[place[index]] = True
    rows = is_live.nonzero()[:, 0]
    output = reference.model.language_model(
        inputs_embeds=hidden[:, rows],
        attention_mask=torch.ones(1, len(rows)),  # else gaps in the positions are read as borders of packed sequences
        position_ids=rows[None],
        output_attentions=True,
        use_cache=False,
    )
    is_video = torch.isin(rows, place)
    return output.attentions[layer][0, :, -1].mean(dim=0)[is_video]
