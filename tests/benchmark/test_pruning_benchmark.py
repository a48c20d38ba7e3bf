import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from typer.testing import CliRunner

import jobs.benchmark
from pipeline.benchmark.picks import agree
from pipeline.benchmark.pruning import benchmark_pruning, make_case
from pipeline.benchmark.straightforward import select_straightforwardly
from pruning.blocks import segment_blocks, split_blocks
from pruning.select import select_tokens
from tests.pruning import reference

CPU = torch.device("cpu")
SMALL = {"frames": 6, "positions": 20, "dim": 64, "projection": 16}
COLUMNS = {"retention", "live_tokens", "segments", "ours_ms", "straightforward_ms", "speedup", "same_picks"}


@pytest.mark.parametrize("rank", [3, 48])
def test_the_straightforward_formulation_is_the_sequential_recursion(rank):
    case = make_case(60, 30, 3, rank, False, CPU)
    plain = case.features.double().tolist()
    weights = case.relevance.double().tolist()
    kept = select_straightforwardly(case.features, case.relevance, case.lengths, case.counts)
    for i, (rows, count) in enumerate(zip(kept, case.counts, strict=True)):
        part = slice(20 * i, 20 * i + 20)
        expected = reference.greedy_map(reference.kernel(plain[part], weights[part]), count, weights[part])
        assert rows.tolist() == [20 * i + item for item in expected]


@pytest.mark.parametrize("is_uneven", [False, True])
def test_a_case_has_the_asked_tokens_and_segments(is_uneven):
    case = make_case(100, 40, 7, 8, is_uneven, CPU)
    assert case.features.shape == (100, 8)
    assert (len(case.lengths), sum(case.lengths), sum(case.counts)) == (7, 100, 40)
    assert (len(set(case.lengths)) > 2) == is_uneven


def selected(case):
    blocks = split_blocks(segment_blocks([case.lengths], [case.counts]), 50)
    ours = select_tokens([case.features], [case.relevance], [case.lengths], [case.counts], 50, 1e-6)[0]
    others = select_straightforwardly(case.features, case.relevance, blocks.sizes.tolist(), blocks.counts.tolist())
    return blocks, ours, others


def test_equal_picks_agree_without_a_margin():
    case = make_case(160, 70, 2, 96, False, CPU)
    blocks, ours, others = selected(case)
    assert agree(case.features, case.relevance, blocks, ours, others, 1e-6) == (True, 0.0)


def test_another_selection_does_not_agree():
    case = make_case(160, 70, 2, 96, False, CPU)
    blocks, ours, _ = selected(case)
    turned = replace(case, relevance=1.2 - case.relevance)
    _, _, others = selected(turned)
    same, margin = agree(case.features, case.relevance, blocks, ours, others, 1e-6)
    assert not same
    assert margin > 1e-3


def test_picks_that_part_at_a_tie_agree():
    # Items 0 and 1 are the same token; the other side takes the second of them.
    case = make_case(20, 5, 1, 32, False, CPU)
    case.features[1] = case.features[0]
    case.relevance[:] = 0.5
    case.relevance[:2] = 1.0
    blocks, ours, others = selected(case)
    assert others[0][0] == 0
    others[0][0] = 1
    same, margin = agree(case.features, case.relevance, blocks, ours, others, 1e-6)
    assert same
    assert margin < 1e-6


def test_rows_say_what_was_measured():
    rows = list(benchmark_pruning(CPU, 1, **SMALL, is_uneven=True, is_unsplit=True))
    assert [(row.retention, row.segments) for row in rows] == [(r, s) for r in (0.3, 0.2, 0.1) for s in (1, 10, 30)]
    for row in rows:
        assert asdict(row).keys() > COLUMNS
        assert row.same_picks
        assert row.live_tokens > row.kept_tokens
        assert min(row.ours_ms, row.straightforward_ms, row.projected_ms) > 0
        assert row.speedup == row.straightforward_ms / row.ours_ms
        assert 0 < row.projected_overlap <= 1
        assert row.projected_cosine_rms > 0.01
        assert (row.unsplit_ms is not None) == (row.segments == 1)
    assert (rows[0].live_tokens, rows[0].kept_tokens) == (60, 42)


def test_the_command_prints_a_table_and_writes_the_rows(tmp_path):
    threads = torch.get_num_threads()
    sizes = [f"--{name}={value}" for name, value in SMALL.items()]
    command = ["pruning", "--json", str(tmp_path / "out" / "rows.json"), "--repeats=1", f"--threads={threads}", *sizes]
    done = CliRunner().invoke(jobs.benchmark.app, command)
    assert done.exit_code == 0, done.output
    assert "straightforward" in done.output
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert len(rows) == 9
    assert rows[0].keys() > COLUMNS | {"device", "threads", "commit", "measured_at"}
    assert f"commit {rows[0]['commit']}" in done.output


def test_it_runs_on_a_bare_gpu_box():
    code = """
import sys
for name in ("typer", "rich", "ray", "pyarrow", "transformers", "decord", "av", "yaml", "duckdb", "fsspec"):
    sys.modules[name] = None
import pipeline.benchmark.machine
import pipeline.benchmark.pruning
"""
    subprocess.run([sys.executable, "-c", code], check=True)
