"""Which retention of a method costs a given amount."""

from __future__ import annotations

import pytest

from pipeline.engine import VideoLLM
from pipeline.evaluate.clips import ClipRange, EncodedClip, feature_folder, load_clip
from pipeline.evaluate.measured import NEAR_ENOUGH, Sample
from pipeline.evaluate.workload import TOLERANCE, Budget, Unreachable, Workload, at_flops, at_retention
from pruning import PruningConfig, VideoGrid, make_pruner
from pruning.cost import DecoderShape

WORKLOAD = Workload(VideoGrid(16, 36), DecoderShape(128, 4, 2, 32, 384, 8), text_tokens=28)


def pruner(method: str):
    return make_pruner(PruningConfig(method=method))


def flops_of(method: str, retention: float) -> float:
    return WORKLOAD.flops(WORKLOAD.plan(pruner(method), retention))


@pytest.mark.parametrize("retention", [0.5, 0.3, 0.2, 0.1])
def test_uniform_gets_the_flops_of_hieravid_to_the_nearest_token(retention: float) -> None:
    target = flops_of("hieravid", retention)
    budget = at_flops(pruner("uniform"), WORKLOAD, target)
    assert isinstance(budget, Budget)
    off = abs(WORKLOAD.flops(budget.plan) - target)
    for tokens in (budget.plan.counts[0] - 1, budget.plan.counts[0] + 1):
        assert off <= abs(flops_of("uniform", tokens / WORKLOAD.grid.tokens) - target)


def test_a_method_matched_with_itself_keeps_its_counts() -> None:
    budget = at_flops(pruner("hieravid"), WORKLOAD, flops_of("hieravid", 0.3))
    assert isinstance(budget, Budget)
    assert budget.plan.counts == WORKLOAD.plan(pruner("hieravid"), 0.3).counts


def test_the_flops_of_the_unpruned_model_take_everything() -> None:
    budget = at_flops(pruner("uniform"), WORKLOAD, 1.0)
    assert isinstance(budget, Budget)
    assert budget.plan.counts == (WORKLOAD.grid.tokens,)


def test_too_few_flops_are_unreachable_and_the_minimum_can_be_reached() -> None:
    found = at_flops(pruner("fastv"), WORKLOAD, 0.1)
    assert isinstance(found, Unreachable)
    assert found.minimum > 0.1 * (1 + TOLERANCE)
    assert isinstance(at_flops(pruner("fastv"), WORKLOAD, found.minimum), Budget)


def test_an_unreachable_retention_names_the_least_one() -> None:
    found = at_retention(pruner("fastv"), WORKLOAD, 0.1)
    assert isinstance(found, Unreachable)
    assert isinstance(at_retention(pruner("fastv"), WORKLOAD, found.minimum), Budget)
    assert isinstance(at_retention(pruner("fastv"), WORKLOAD, found.minimum * 0.99), Unreachable)


def test_a_method_that_departs_from_its_plan_is_matched_by_what_it_does(llm: VideoLLM, clip_cache) -> None:
    """FrameFusion's plan is only a bound: by the plan's FLOPs it would get less than its peers."""
    folder = feature_folder(clip_cache, llm.info)
    clips: list[EncodedClip] = [load_clip(seed, 1, folder) for seed in ClipRange("validation", 0, 3).seeds]
    workload = Workload(llm.grid(16), llm.shape, 28)
    sample = Sample(llm, clips)
    target = 0.4
    by_plan = at_flops(pruner("framefusion"), workload, target)
    by_deed = sample.at_flops(pruner("framefusion"), workload, target)
    assert isinstance(by_deed, Budget)
    assert isinstance(by_plan, Unreachable) or by_plan.retention < by_deed.retention
    assert sample.flops(pruner("framefusion"), workload, by_deed) == pytest.approx(target, rel=2 * NEAR_ENOUGH)


def test_a_method_that_keeps_its_plan_needs_no_measuring(llm: VideoLLM, clip_cache) -> None:
    folder = feature_folder(clip_cache, llm.info)
    clips = [load_clip(seed, 1, folder) for seed in ClipRange("validation", 0, 2).seeds]
    workload = Workload(llm.grid(16), llm.shape, 28)
    assert Sample(llm, clips).at_flops(pruner("uniform"), workload, 0.3) == at_flops(pruner("uniform"), workload, 0.3)
