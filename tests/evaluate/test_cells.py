"""A finished cell is not computed again, and a stale one is not read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.engine import VideoLLM
from pipeline.errors import UserError
from pipeline.evaluate import cells as cells_module
from pipeline.evaluate.cells import CAPTION, RECORD_SCHEMA, Cell
from pipeline.evaluate.clips import ClipRange, missing_clips
from pipeline.evaluate.compare import cell_of
from pipeline.evaluate.variants import parse_variant
from pipeline.evaluate.workers import Runner, Setting, Step
from pipeline.evaluate.workload import Budget
from pruning import make_pruner

CLIPS = ClipRange("validation", 0, 2, questions=2)


def make_cell(llm: VideoLLM, method: str, retention: float = 0.3, clips: ClipRange = CLIPS, captions: int = 0) -> Cell:
    variant = parse_variant(method)
    config = variant.config()
    assert config is not None
    budget = Budget(retention, make_pruner(config).plan(llm.grid(16), llm.shape.layers, retention))
    return cell_of(variant, config, budget, clips, captions)


class Runs:
    """Runs cells and remembers which ones it had to compute."""

    def __init__(self, llm: VideoLLM, cache: Path, folder: Path) -> None:
        self.llm, self.setting, self.computed = llm, Setting("builtin:tiny", "cpu", cache, folder), []

    def __call__(self, *cells: Cell) -> dict[Cell, Path]:
        self.computed: list[str] = []
        with Runner(self.setting, self.llm, 1, self._report) as runner:
            return runner.run(cells)

    def _report(self, step: Step) -> None:
        self.computed.append(step.name)


@pytest.fixture
def runs(llm: VideoLLM, clip_cache: Path, tmp_path: Path) -> Runs:
    return Runs(llm, clip_cache, tmp_path / "cells")


def test_records_hold_every_question_and_caption(llm: VideoLLM, runs: Runs) -> None:
    cell = make_cell(llm, "hieravid", captions=1)
    table = pq.read_table(runs(cell)[cell])
    assert table.schema.equals(RECORD_SCHEMA)
    rows = table.to_pylist()
    assert [(row["seed"], row["number"]) for row in rows[:4]] == [(s, n) for s in CLIPS.seeds for n in range(2)]
    assert all(row["correct"] == (row["answer"] == row["truth"]) for row in rows[:4])
    assert sum(row["correct"] for row in rows[:4]) >= 2, "the built-in model answers most questions"
    assert all(row["retention_achieved"] == cell.budget.plan.retention for row in rows)
    assert [row["kind"] for row in rows[4:]] == [CAPTION]
    assert rows[4]["correct"] is None
    assert 0.5 < rows[4]["score"] <= 1


def test_a_second_run_computes_nothing_and_a_changed_config_only_itself(llm: VideoLLM, runs: Runs) -> None:
    first, second = make_cell(llm, "uniform"), make_cell(llm, "random")
    files = runs(first, second)
    written = files[first].stat().st_mtime_ns
    assert len(runs.computed) == 2
    assert runs(first, second) == files
    assert runs.computed == []
    runs(first, make_cell(llm, "uniform", 0.1))
    assert runs.computed == ["uniform at 0.1"]
    assert files[first].stat().st_mtime_ns == written


def test_what_comes_to_the_same_tokens_is_one_cell(llm: VideoLLM, runs: Runs) -> None:
    one, other = make_cell(llm, "uniform", 0.3), make_cell(llm, "uniform", 0.30001)
    files = runs(one, other)
    assert files[one] == files[other]
    assert runs.computed == ["uniform at 0.3"]


def test_everything_that_can_change_an_answer_changes_the_key(llm: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    info = llm.info
    keys = {
        make_cell(llm, method, retention, clips, captions).key(info)
        for method, retention, clips, captions in (
            ("hieravid", 0.3, CLIPS, 0),
            ("hieravid:tau=0.7", 0.3, CLIPS, 0),
            ("hieravid:kv_retention=0.5", 0.3, CLIPS, 0),
            ("hieravid", 0.2, CLIPS, 0),
            ("hieravid", 0.3, replace(CLIPS, first=1), 0),
            ("hieravid", 0.3, replace(CLIPS, questions=1), 0),
            ("hieravid", 0.3, replace(CLIPS, split="test"), 0),
            ("hieravid", 0.3, CLIPS, 1),
            ("uniform", 0.3, CLIPS, 0),
        )
    }
    cell = make_cell(llm, "hieravid")
    keys.add(cell.key(replace(info, model_hash="other")))
    keys.add(cell.key(replace(info, dtype="bfloat16")))
    keys.add(cell.key(replace(info, quantization="int8")))
    monkeypatch.setattr(cells_module, "_answering_sources", lambda: "edited")
    keys.add(cell.key(info))
    assert len(keys) == 13


def test_a_label_does_not_change_the_key(llm: VideoLLM) -> None:
    cell = make_cell(llm, "hieravid")
    assert replace(cell, label="ours").key(llm.info) == cell.key(llm.info)


def test_sources_that_change_under_way_end_the_run(
    llm: VideoLLM, runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    versions = iter(["before", "after"])
    monkeypatch.setattr(cells_module, "_answering_sources", lambda: next(versions))
    with pytest.raises(UserError, match="changed since the run began"):
        runs(make_cell(llm, "uniform"))
    assert not (tmp_path / "cells").exists()


def test_encoded_clips_are_kept_and_others_are_missing(llm: VideoLLM, runs: Runs) -> None:
    with Runner(runs.setting, llm, 1, runs._report) as runner:
        assert missing_clips(ClipRange("validation", 0, 4).seeds, runner.bench.features) == [1000003]
        runner.encode(ClipRange("validation", 0, 3))
        clip = runner.bench.load(replace(CLIPS, count=1))[0]
    assert runs.computed == []
    assert clip.video.tokens.shape == (16 * 36, llm.shape.hidden)
    assert clip.video.attention is not None
    assert clip.video.attention.shape == (16 * 36,)
    assert clip.video.frames == 16
    assert len(clip.questions) == 2
