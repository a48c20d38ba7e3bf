"""Methods side by side, at equal retention and at equal FLOPs: which cells that takes, and what they say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.engine import VideoLLM
from pipeline.errors import UserError
from pipeline.evaluate.cells import Cell
from pipeline.evaluate.clips import ClipRange, clip_truth
from pipeline.evaluate.measured import SAMPLE_CLIPS, Sample
from pipeline.evaluate.scores import Scores, read_scores
from pipeline.evaluate.variants import UNPRUNED, Variant, pruner_of
from pipeline.evaluate.workers import Report, Runner, Setting
from pipeline.evaluate.workload import Budget, Unreachable, Workload, at_retention
from pipeline.prompts import with_options
from pipeline.tiny.world import SLOTS
from pruning import PruningConfig
from pruning.calibration import CalibrationError

Comparison = Literal["mean", "flops"]
REFERENCE = "hieravid"
"""The method whose FLOPs the others are given, and which is compared with each of them."""


@dataclass(frozen=True)
class Entry:
    """One row to be: a variant at a nominal `retention` of a comparison.

    `budget` is what it was given there, or the least that it would need. `scores` are None for an
    unreachable one.
    """

    variant: Variant
    comparison: Comparison
    retention: float
    budget: Budget | Unreachable
    scores: Scores | None = None


def compare(
    setting: Setting,
    llm: VideoLLM,
    variants: Sequence[Variant],
    comparisons: Sequence[Comparison],
    retentions: Sequence[float],
    clips: ClipRange,
    captions: int,
    workers: int,
    report: Report,
) -> list[Entry]:
    """Run what is missing of a comparison and read all of it.

    The unpruned model is always among the results: once in each comparison, at retention 1. Raises
    UserError for clips, options or calibrations that cannot be used.
    """
    check_clips(clips, variants)
    variants = [Variant(UNPRUNED, UNPRUNED), *(v for v in variants if v.label != UNPRUNED)]
    for place, variant in enumerate(variants):
        if any(variant.label == other.label for other in variants[:place]):
            raise UserError(f"method {variant.label} stands twice in the list")
    configs = {variant: resolve(variant, llm) for variant in variants}
    workload = measure_workload(llm, clips)
    with Runner(setting, llm, workers, report) as runner:
        runner.encode(clips)
        sample = Sample(llm, runner.bench.load(replace(clips, count=min(clips.count, SAMPLE_CLIPS))))
        reference = _reference(configs, llm)
        entries = [
            entry
            for comparison in comparisons
            for entry in _entries(comparison, retentions, configs, reference, workload, sample)
        ]
        cells = [_cell(entry, configs[entry.variant], clips, captions) for entry in entries]
        files = runner.run(cell for cell in cells if cell)
    scores = {file: read_scores(file) for file in set(files.values())}
    return [
        replace(entry, scores=scores[files[cell]] if cell else None) for entry, cell in zip(entries, cells, strict=True)
    ]


def check_clips(clips: ClipRange, variants: Sequence[Variant]) -> None:
    """Raise UserError unless the clips exist and no variant asks for more of them."""
    if clips.count < 1 or len(clips.seeds) < clips.count:
        raise UserError(f"the {clips.split} split has no {clips.count} clips from {clips.first} on")
    for variant in variants:
        if variant.clips and variant.clips > clips.count:
            raise UserError(f"method {variant.label}: asks for {variant.clips} clips, there are {clips.count}")


def resolve(variant: Variant, llm: VideoLLM) -> PruningConfig | None:
    """A variant's config with all options written out, the model's calibration applied; UserError if it has none."""
    config = variant.config()
    try:
        return config and llm.resolve(config)
    except CalibrationError as error:
        raise UserError(f"method {variant.label}: {error}") from error


def measure_workload(llm: VideoLLM, clips: ClipRange) -> Workload:
    """What the questions about these clips have in common: their grid, and their mean number of text tokens."""
    prompts = [with_options(q.text, q.options) for seed in clips.seeds for q in clip_truth(seed, clips.questions)[0]]
    return Workload(llm.grid(SLOTS), llm.shape, round(sum(map(llm.prompt_tokens, prompts)) / len(prompts)))


def cell_of(variant: Variant, config: PruningConfig | None, budget: Budget, clips: ClipRange, captions: int) -> Cell:
    """The cell of a variant on as many of the first clips as it asks for."""
    own = replace(clips, count=variant.clips or clips.count)
    return Cell(variant.label, config, budget, own, min(captions, own.count))


def _cell(entry: Entry, config: PruningConfig | None, clips: ClipRange, captions: int) -> Cell | None:
    if isinstance(entry.budget, Unreachable):
        return None
    return cell_of(entry.variant, config, entry.budget, clips, captions)


def _reference(configs: dict[Variant, PruningConfig | None], llm: VideoLLM) -> PruningConfig | None:
    """The first HieraVid among the variants, else as the model runs it."""
    chosen = next((config for config in configs.values() if config and config.method == REFERENCE), None)
    return chosen or resolve(Variant(REFERENCE, REFERENCE), llm)


def _entries(
    comparison: Comparison,
    retentions: Sequence[float],
    configs: dict[Variant, PruningConfig | None],
    reference: PruningConfig | None,
    workload: Workload,
    sample: Sample,
) -> Iterator[Entry]:
    for variant, config in configs.items():
        pruner = pruner_of(config)
        if variant.method == UNPRUNED:
            yield Entry(variant, comparison, 1.0, Budget(1.0, workload.plan(pruner, 1.0)))
            continue
        for retention in retentions:
            if comparison == "mean" or config == reference:
                budget = at_retention(pruner, workload, retention)
            else:
                target = workload.flops(workload.plan(pruner_of(reference), retention))
                budget = sample.at_flops(pruner, workload, target)
            yield Entry(variant, comparison, retention, budget)
