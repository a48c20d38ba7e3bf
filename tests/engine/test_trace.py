"""A traced answer tells what became of every token, in agreement with its statistics."""

import numpy as np
import pytest
import torch

from pipeline.engine import Request, VideoLLM
from pruning import Kept, Needs, PruningConfig
from tests.engine.checkpoints import Shape, write_checkpoint
from tests.engine.pruners import EvenPruner
from tests.engine.recording import answer_traced
from tests.engine.videos import make_video


def ask(frames=5, **options):
    return Request(make_video(frames), "what happens", **{"max_new_tokens": 3, "is_traced": True, **options})


@pytest.mark.parametrize("method", ["hieravid", "uniform", "random", "none"])
def test_a_trace_agrees_with_plan_and_decisions(pair, method):
    llm, _ = pair
    requests = [ask(n, seed=n) for n in (1, 4, 7)]
    answers, records = answer_traced(llm, requests, PruningConfig(method=method, retention=0.3))
    for answer, record in zip(answers, records, strict=True):
        trace, plan = answer.trace, record.plan
        assert trace.grid.tokens == len(trace.alive_until) == answer.stats.video_tokens
        assert list(trace.stage_layers) == answer.stats.stage_layers
        alive = [(trace.alive_until > layer).sum() for layer in range(trace.num_layers)]
        assert alive == plan.mlp_tokens()
        for stage, decision in record.decisions.items():
            survivors = np.flatnonzero(trace.alive_until > plan.layers[stage])
            assert survivors.tolist() == decision.index.tolist()


def test_places_are_those_of_the_grid(pair):
    llm, _ = pair
    [answer] = llm.answer([ask(3)], PruningConfig(method="uniform", retention=0.5))
    trace = answer.trace
    columns = trace.grid.columns
    assert columns**2 == trace.grid.positions
    rebuilt = (trace.frame * columns + trace.row) * columns + trace.column
    assert rebuilt.tolist() == list(range(trace.grid.tokens))
    assert trace.column.max() == trace.row.max() == columns - 1
    assert (trace.segment == -1).all()


def test_segments_are_those_of_the_method(llm):
    [answer] = llm.answer([ask(9)], PruningConfig(method="hieravid", retention=0.5, tau=0.99, beta=0.9))
    trace = answer.trace
    assert len(set(trace.segment)) == answer.stats.segments >= 2
    assert sorted(trace.segment) == trace.segment.tolist()
    for frame in range(9):
        assert len(set(trace.segment[trace.frame == frame])) == 1


class MergingPruner(EvenPruner):
    """Keeps the first rows; at each stage the last of the others merges into row 0 and the rest is dropped."""

    def decide(self, stage, video):
        count = video.plan.counts[stage]
        into = torch.full((len(video.index),), -1)
        into[:count] = torch.arange(count)
        into[-1] = count - 1 if stage == 0 else 0
        assert video.is_traced
        return Kept(torch.arange(count), segment_starts=(0, 1), merged_into=into)


def test_merges_are_followed_over_stages(llm):
    [answer] = llm.answer([ask(3)], MergingPruner((0, 2, 4), (0.5, 0.25, 0.125)))
    trace = answer.trace
    assert answer.stats.stage_tokens == [24, 12, 6]
    merged = trace.merged_into != np.arange(48)
    # token 47 merged into 23, which merged into 0 at the next stage; 11 into 0 at the last
    assert {int(i): int(trace.merged_into[i]) for i in np.flatnonzero(merged)} == {47: 0, 23: 0, 11: 0}
    assert trace.alive_until[[47, 46, 23, 22, 11, 10, 5, 0]].tolist() == [0, 0, 2, 2, 4, 4, 8, 8]
    assert trace.segment.tolist() == [0] * 16 + [1] * 32


@pytest.mark.parametrize(
    ("row", "target"), [(40, 41), (0, 1)], ids=["into a row that left", "of a row that stays into another"]
)
def test_merges_that_contradict_the_kept_rows_are_caught(llm, row, target):
    class Contradicting(MergingPruner):
        def decide(self, stage, video):
            kept = super().decide(stage, video)
            kept.merged_into[row] = target
            return kept

    with pytest.raises(RuntimeError, match="merged_into at layer 0 must lead from each row that left"):
        llm.answer([ask(3)], Contradicting((0,), (0.5,)))


def test_answers_are_traced_one_by_one_and_not_changed_by_it(llm):
    pruner = EvenPruner()
    traced, plain = llm.answer([ask(4), ask(4, is_traced=False)], pruner)
    assert plain.trace is None
    assert traced.token_ids == plain.token_ids
    assert sorted(view.is_traced for view in pruner.seen) == [False] * 3 + [True] * 3


def test_a_stage_in_the_last_layer_is_traced_too(tmp_path):
    llm = VideoLLM.load(write_checkpoint(tmp_path, Shape(layers=4)), device="cpu")
    pruner = EvenPruner((0, 3), (0.5, 0.25), needs=Needs(last_token_attention=True))
    traced, plain = llm.answer([ask(3)], pruner) + llm.answer([ask(3, is_traced=False)], pruner)
    assert traced.token_ids == plain.token_ids
    assert np.bincount(traced.trace.alive_until).tolist() == [24, 0, 0, 12, 12]
