"""Variants of HieraVid against its default."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engine import VideoLLM
from pipeline.errors import UserError
from pipeline.evaluate.ablations import ABLATION_SCHEMA, ablate, ablation_variants, group_names
from pipeline.evaluate.clips import ClipRange
from pipeline.evaluate.compare import resolve
from pipeline.evaluate.origin import Origin
from pipeline.evaluate.outputs import write_ablations
from pipeline.evaluate.table import write_table
from pipeline.evaluate.workers import Setting
from pruning import StagePlan, make_pruner


def test_every_variant_can_be_run(llm: VideoLLM) -> None:
    found = ablation_variants(group_names())
    assert len({(group, variant.label) for group, variant in found}) == len(found)
    for _, variant in found:
        config = resolve(variant, llm)
        assert config is not None
        assert isinstance(make_pruner(config).plan(llm.grid(16), 8, 0.3), StagePlan)
        for name, value in variant.options:
            assert name == "preset" or getattr(config, name) == value


def test_levels_are_taken_alone_in_pairs_and_together() -> None:
    labels = [variant.label for _, variant in ablation_variants(["levels"])]
    assert labels == [
        "levels segment",
        "levels frame",
        "levels layer",
        "levels segment+frame",
        "levels segment+layer",
        "levels frame+layer",
        "levels segment+frame+layer",
    ]


def test_signs_and_transforms_are_crossed() -> None:
    assert len(ablation_variants(["relevance"])) == 6


def test_an_unknown_group_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="'colour', known: preset, levels"):
        ablation_variants(["colour"])


def test_rows_compare_with_the_default_on_the_same_questions(llm: VideoLLM, clip_cache: Path, tmp_path: Path) -> None:
    setting = Setting("builtin:tiny", "cpu", clip_cache, tmp_path / "cells")
    clips = ClipRange("validation", 0, 2, questions=3)
    rows = ablate(setting, llm, ["selection"], [0.3], clips, 1, 1, lambda step: None)
    assert [row["group"] for row in rows] == ["default", *["selection"] * 3]
    assert rows[0]["difference"] is None
    for row in rows[1:]:
        assert row["difference"] == pytest.approx(row["accuracy"] - rows[0]["accuracy"])
        assert row["ci_low"] <= row["difference"] <= row["ci_high"]
        assert (row["questions"], row["captions"]) == (6, 1)
    write_table(rows, ABLATION_SCHEMA, tmp_path / "rows.parquet", {})
    text = write_ablations(rows, tmp_path, Origin("2026-01-01", "2 CPU cores", "abc1234", "ablate"))
    assert "### selection" in text
    assert "| selection relevance | " in text
    assert (tmp_path / "ablations.md").read_text() == text
