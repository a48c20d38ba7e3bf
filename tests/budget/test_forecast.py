"""A plan of real clips beside what the decoder and the engine then do with them."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

import jobs.plan
from pipeline.budget.accuracy import expected_share
from pipeline.budget.check import compare, read_finished
from pipeline.budget.choose import choose
from pipeline.budget.forecast import forecast
from pipeline.budget.profile import load_profile, save_profile
from pipeline.config import BudgetConfig
from pipeline.config_load import load_config
from pipeline.engine import Request, VideoLLM
from pipeline.errors import UserError
from pipeline.summary import STAGES, Tally, summarize
from pipeline.tiny.clips import write_video as write_clip
from pipeline.tiny.world import SEED_RANGES, make_clip
from pipeline.video.decode import decode_frames
from pipeline.video.sampling import Sampling
from tests.video.samples import write_video

ANSWER = 3  # tokens


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Two clips of the built-in world, one of fewer frames than the model takes, one that is no video; their job."""
    folder = tmp_path_factory.mktemp("archive")
    names = []
    for seed in SEED_RANGES["validation"][:2]:
        names.append(f"{seed}.mp4")
        write_clip(make_clip(seed), folder / names[-1])
    write_video(folder / "short.mp4", frames=5)
    rows = [{"uri": name, "question": f"what color is object {n}"} for name in names for n in range(3)]
    rows += [{"uri": "short.mp4", "question": "which"}, {"uri": names[0], "question": "how many", "retention": 0.8}]
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, rows


def job(archive, *overrides):
    folder, _ = archive
    given = ["task=qa", f"manifest={folder}/manifest.jsonl", f"output={folder}/out", "model.device=cpu"]
    return load_config(None, [*given, f"generation.max_new_tokens={ANSWER}", *overrides])


@pytest.fixture(scope="module")
def profile(archive, tmp_path_factory):
    """Timings measured once."""
    path = str(tmp_path_factory.mktemp("profile") / "cpu.json")
    save_profile(forecast(job(archive), told=lambda _: None).profile, path)
    return path


def plan(archive, profile, *overrides):
    return forecast(job(archive, *overrides), profile=profile, told=lambda _: None)


def answered(archive, retention):
    """What the rows come to when they are really decoded and answered."""
    folder, rows = archive
    llm = VideoLLM.load("builtin:tiny", device="cpu")
    requests = []
    for row in rows:
        sampling = Sampling(llm.info.default_frames, "keyframe")
        video = decode_frames(folder / row["uri"], sampling, llm.info.frame_size)
        own = row.get("retention", retention)
        requests.append(Request(video.frames, row["question"], ANSWER, video_key=row["uri"], retention=own))
    return [answer.stats for answer in llm.answer(requests, job(archive).pruning)]


def test_the_plan_says_the_tokens_and_flops_of_the_run_that_follows(archive, profile):
    stats = answered(archive, 0.3)
    chosen = plan(archive, profile, "budget.retention=0.3").chosen
    assert chosen.tokens.rows == len(stats) == 8
    assert chosen.tokens.video == sum(one.video_tokens for one in stats)
    assert chosen.tokens.kept == pytest.approx(sum(one.video_tokens * one.retention_achieved for one in stats))
    assert chosen.tokens.text == sum(one.prompt_tokens for one in stats)
    assert chosen.flops_ratio == pytest.approx(sum(one.flops_ratio for one in stats) / len(stats))
    for place, layer in enumerate(stats[0].stage_layers):
        assert chosen.tokens.stages[layer] == sum(one.stage_tokens[place] for one in stats)
    assert sum(chosen.tokens.stage_flops.values()) == pytest.approx(chosen.tokens.flops)


@pytest.mark.parametrize(
    ("override", "cost"),
    [
        ("budget.tokens_per_video=200", lambda stats: sum(s.video_tokens * s.retention_achieved for s in stats) / 8),
        ("budget.flops_share=0.4", lambda stats: sum(s.flops_ratio for s in stats) / 8),
    ],
)
def test_a_derived_retention_meets_its_budget(archive, profile, override, cost):
    chosen = plan(archive, profile, override).chosen
    wanted = float(override.partition("=")[2])
    assert 0.98 * wanted <= cost(answered(archive, chosen.retention)) <= 1.0001 * wanted


def test_hours_are_met_down_to_the_floor_and_refused_below(archive, profile):
    whole = plan(archive, profile)
    # Where prefill takes most of the time, as of a large model, hours follow tokens.
    slow = replace(whole.costs, profile=replace(whole.profile, prefill_s_per_flop=1e-8))
    least = slow.workload.least_retention()
    wanted = 0.6 * slow.at(1.0).gpu_hours
    choice = choose(BudgetConfig(gpu_hours=wanted), slow.at, least)
    assert choice.estimate.gpu_hours == pytest.approx(wanted, rel=0.01)
    assert choice.estimate.bottleneck == "model"
    per_row = slow.per_row(0.05, 1.0)
    row_s = per_row.steady_s + per_row.pruned_at(choice.retention)
    assert row_s * slow.rows / 3600 == pytest.approx(wanted, rel=0.05)
    with pytest.raises(UserError, match=r"budget.gpu_hours = .* out of reach.*bottleneck"):
        choose(BudgetConfig(gpu_hours=wanted * 1e-3), slow.at, least)


def test_videos_that_cannot_be_read_count_as_in_the_sample(archive, profile, tmp_path):
    folder, _ = archive
    (folder / "broken.mp4").write_bytes(b"no video")
    manifest = tmp_path / "manifest.jsonl"
    both = [{"uri": f"{folder}/{name}", "question": "q"} for name in ("short.mp4", "broken.mp4")]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in both))
    found = plan(archive, profile, f"manifest={manifest}")
    assert found.sample.failures == {"not_a_video": 1}
    assert (found.census.rows, found.costs.rows) == (2, 1.0)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pruning.method=uniform", "another pruning_method: hieravid, this job has uniform"),
        ("model.dtype=bfloat16", "another dtype: float32, this job has bfloat16"),
    ],
)
def test_a_profile_of_something_else_is_refused(archive, profile, override, told):
    info = VideoLLM.load("builtin:tiny", device="cpu").info
    with pytest.raises(UserError) as caught:
        load_profile(profile, job(archive, override), info)
    assert told in str(caught.value)
    with pytest.raises(UserError, match="model_hash"):
        load_profile(profile, job(archive), replace(info, model_hash="b" * 64))


def test_a_file_that_is_no_profile_is_refused(archive, tmp_path):
    (tmp_path / "x.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match="is no profile"):
        load_profile(str(tmp_path / "x.json"), job(archive), None)


def test_accuracy_is_told_of_an_evaluated_model_alone(archive):
    info = VideoLLM.load("builtin:tiny", device="cpu").info
    at = [expected_share(job(archive), info.model_hash, r) for r in (0.1, 0.25, 1.0)]
    assert at == sorted(at)
    assert at[-1] == 1.0
    assert at[0] > 0.9
    assert expected_share(job(archive), info.model_hash, 0.02) is None
    assert expected_share(job(archive), "b" * 64, 0.3) is None
    assert expected_share(job(archive, "pruning.tau=0.7"), info.model_hash, 0.3) is None
    assert expected_share(job(archive, "video.frames=4"), info.model_hash, 0.3) is None


def test_a_plan_is_compared_with_a_finished_run(archive, profile, tmp_path):
    found = plan(archive, profile, "budget.retention=0.3")
    tally = Tally(rows=8, ok=8, video_tokens=round(found.chosen.tokens.video) // 2)
    tally.stage_ms = dict.fromkeys(STAGES, 1000.0)
    facts = dict.fromkeys(
        ("run_id", "name", "task", "output", "results", "fingerprint", "model", "pruning_method"), "x"
    )
    summary = summarize(
        tally,
        datetime.now(UTC),
        1.0,
        **facts,
        retention_requested=0.3,
        exit_status=0,
        manifest_rows=8,
        max_failed_share=0.05,
    )
    (tmp_path / "summary.json").write_text(summary.to_json())
    compared = {one.name: one for one in compare(found, read_finished(str(tmp_path)))}
    assert compared["rows answered"].off == 0
    assert compared["video tokens"].off == pytest.approx(1.0)
    assert compared["model s"].actual == 4.0
    (tmp_path / "summary.json").write_text(replace(summary, manifest_rows=9).to_json())
    with pytest.raises(UserError, match="8 of 9 rows"):
        read_finished(str(tmp_path))


def test_the_command_prints_a_plan_for_people_and_for_scripts(archive, profile, tmp_path):
    folder, _ = archive
    file = tmp_path / "job.yaml"
    file.write_text(f"task: qa\nmanifest: {folder}/manifest.jsonl\noutput: {folder}/out\nmodel: {{device: cpu}}\n")
    given = ["--config", str(file), "--profile", profile, "budget.flops_share=0.4", "budget.usd_per_gpu_hour=2"]
    shown = CliRunner().invoke(jobs.plan.app, given)
    assert shown.exit_code == 0, shown.output
    for part in ("retention", "bottleneck", "USD", "answerer-hours", "accuracy", "to fetch"):
        assert part in shown.stdout
    told = json.loads(CliRunner().invoke(jobs.plan.app, [*given, "--json"]).stdout)
    assert (told["rows"], told["videos"], told["budget"]["flops_share"]) == (8, 3, 0.4)
    assert told["chosen"]["flops_ratio"] <= 0.4 < told["unpruned"]["flops_ratio"]
    assert not (folder / "out").exists()


def test_a_budget_out_of_reach_ends_the_command_with_2_and_the_minimum(archive, profile, tmp_path):
    folder, _ = archive
    file = tmp_path / "job.yaml"
    file.write_text(f"task: qa\nmanifest: {folder}/manifest.jsonl\noutput: {folder}/out\nmodel: {{device: cpu}}\n")
    given = ["--config", str(file), "--profile", profile, "budget.tokens_per_video=1"]
    shown = CliRunner().invoke(jobs.plan.app, given)
    assert shown.exit_code == 2
    assert "budget.tokens_per_video = 1 is out of reach" in shown.stderr
    assert "video tokens a row" in shown.stderr


def test_a_pool_that_may_grow_is_planned_at_its_most(archive, profile):
    pools = plan(archive, profile, "cluster.decoders=[1, 3]", "cluster.answerers=[1, 2]").costs.pools
    assert (pools.decoders, pools.answerers) == (3, 2)
