import pytest

from pipeline.config_load import load_config
from pipeline.fingerprint import fingerprint

BASE = ("task=qa", "manifest=clips.jsonl", "output=out/x", "budget.retention=0.3")


def of(*overrides, model_hash="abc"):
    return fingerprint(load_config(None, [*BASE, *overrides]), model_hash)


def test_it_is_short_hex_and_does_not_change_between_processes():
    assert of() == of()
    assert len(of()) == 12
    assert int(of(), 16) >= 0


def test_it_does_not_depend_on_the_order_of_keys(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("task: qa\nmanifest: m.csv\noutput: o\nvideo: {frames: 8}\ngeneration: {seed: 1, top_p: 0.5}\n")
    two.write_text("generation: {top_p: 0.5, seed: 1}\noutput: o\nvideo: {frames: 8}\nmanifest: m.csv\ntask: qa\n")
    assert fingerprint(load_config(one), "abc") == fingerprint(load_config(two), "abc")


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "manifest=other.csv",
        "output=elsewhere",
        "video.decode_timeout_s=5",
        "video.decoder_memory_mb=1024",
        "video.fps=2",  # of a policy that has no use for it
        "model.source=/models/copy-of-tiny",
        "model.device=cpu",
        "model.max_positions=65536",
        "cluster.decoders=9",
        "cluster.batch_size=1",
        "cluster.rows_per_shard=7",
        "failures.max_failed_share=1",
        "failures.retries=0",
        "pruning.preset=author",
        "pruning.calibration=null",
        "pruning.beta=0.4",
    ],
)
def test_what_changes_no_answer_does_not_change_it(override):
    assert of(override) == of()


@pytest.mark.parametrize(
    "override",
    [
        "task=caption",
        "video.frames=8",
        "video.policy=uniform",
        "video.policy=scene",
        "video.backend=decord",
        "model.dtype=float32",
        "model.quantization=int8",
        "budget.retention=0.31",
        "pruning.method=uniform",
        "pruning.tau=0.7",
        "pruning.kv_retention=0.5",
        "pruning.preset=default",
        "pruning.levels=[segment]",
        "generation.prompt=What is it?",
        "generation.max_new_tokens=4",
        "generation.temperature=0.5",
        "generation.top_p=0.5",
        "generation.seed=1",
        "generation.stop=[Q]",
        "generation.time_instruction=true",
    ],
)
def test_what_changes_an_answer_changes_it(override):
    assert of(override) != of()


def test_the_rate_of_frames_changes_it_where_it_is_used():
    assert of("video.policy=fps", "video.fps=2") != of("video.policy=fps")


def test_the_model_s_content_changes_it():
    assert of(model_hash="other") != of()


def test_the_default_prompt_and_the_same_prompt_written_out_are_one():
    assert of("task=caption") == of("task=caption", "generation.prompt=Describe the video.")
