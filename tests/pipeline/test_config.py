from pathlib import Path

import pytest
import yaml

from pipeline.config import DEFAULT_CAPTION_PROMPT, JobConfig
from pipeline.config_load import dump_config, load_config
from pipeline.errors import UserError

BASE = ("task=qa", "manifest=clips.jsonl", "output=out/x")


def load(*overrides):
    return load_config(None, [*BASE, *overrides])


def refusal(*overrides, **options):
    with pytest.raises(UserError) as caught:
        load_config(options.get("path"), [*BASE, *overrides], options.get("task"))
    return str(caught.value)


def test_a_short_job_file_is_enough(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("task: caption\nmanifest: a.csv\noutput: out\nbudget: {retention: 0.3}\nvideo:\n")
    config = load_config(path)
    assert (config.video.frames, config.video.policy, config.video.backend) == ("auto", "keyframe", "auto")
    assert config.model.source == "builtin:tiny"
    assert config.generation.prompt == DEFAULT_CAPTION_PROMPT
    assert config.pruning.method == "hieravid"


def test_the_pruning_section_holds_the_budget_s_retention():
    config = load("budget.retention=0.3", "pruning.method=uniform")
    assert (config.pruning.method, config.pruning.retention) == ("uniform", 0.3)
    assert "retention" not in config.model_dump()["pruning"]


def test_overrides_win_over_the_file_and_are_read_as_yaml(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("manifest: a.csv\noutput: out\nvideo: {frames: 8}\ngeneration: {top_p: 0.5}\n")
    config = load_config(path, ["video.frames=16", "generation.temperature=1e-1", "name=2026-11-22"], "caption")
    assert (config.video.frames, config.generation.top_p) == (16, 0.5)
    assert config.generation.temperature == 0.1
    assert config.name == "2026-11-22"


@pytest.mark.parametrize("prompt", ["Answer: what is it?", "scene #3?", "what is {this}", "is it = or =="])
def test_a_prompt_override_needs_no_quotes(prompt):
    assert load(f"generation.prompt={prompt}").generation.prompt == prompt


def test_the_resolved_config_is_a_job_file_again(tmp_path):
    config = load(
        *("budget.retention=0.25", "pruning.preset=author", "pruning.kv_retention=0.5", "video.frames=4"),
        *("generation.prompt=Où est-il ?", 'generation.stop=["\\n", "Q:"]', "generation.time_instruction=true"),
        *("model.quantization=int8", "model.max_positions=65536", "model.source=owner/some-7b@v2"),
    )
    assert config.generation.stop == ("\n", "Q:")
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config, "0123456789ab"))
    assert yaml.safe_load(path.read_text())["fingerprint"] == "0123456789ab"
    assert load_config(path) == config


def test_the_task_comes_from_the_job_and_must_agree_with_the_file():
    assert load_config(None, BASE[1:], "caption").task == "caption"
    assert "python -m jobs.qa" in refusal(task="caption")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("budget.retention=0", ("budget.retention = 0 ", "above 0 and at most 1")),
        ("budget.retention=1.5", ("budget.retention = 1.5 ", "above 0 and at most 1")),
        ("budget.retention=.nan", ("budget.retention = nan ", "above 0 and at most 1")),
        ("budget.retention=yes", ("budget.retention = True ", "not a number")),
        ("budget.retentoin=0.3", ("budget.retentoin = 0.3", "did you mean budget.retention?")),
        ("retention=0.3", ("retention = 0.3", "did you mean budget.retention?")),
        ("prunning.method=none", ("prunning", "did you mean pruning?")),
        ("pruning.retention=0.3", ("pruning.retention = 0.3", "budget.retention")),
        ("pruning.method=hieravidd", ("pruning.method = 'hieravidd'", "hieravid", "uniform")),
        ("pruning.gamma=7", ("pruning.gamma = 7", "less than or equal to 1")),
        ("pruning.segments=0", ("pruning.segments = 0", "whole number from 1")),
        ("pruning.merge_share=yes", ("pruning.merge_share = True", "from 0 to 1")),
        ("pruning.levels=[frames]", ("pruning.levels", "'segment', 'frame' or 'layer'")),
        ("pruning.levels=[]", ("pruning.levels", "at least 1")),
        ("pruning.selection=best", ("pruning.selection = 'best'", "'dpp', 'relevance' or 'uniform'")),
        ("pruning.calibraton=x.json", ("pruning.calibraton = 'x.json'", "did you mean pruning.calibration?")),
        ("pruning=none", ("pruning = 'none'", "section")),
        ("video=3", ("video = 3 ", "section")),
        ("video.frames=0", ("video.frames = 0 ", "auto", "whole number from 1")),
        ("video.frames=8.5", ("video.frames = 8.5 ", "whole number")),
        ("video.policy=keyframes", ("video.policy = 'keyframes'", "keyframe (", "uniform (", "fps (", "scene (")),
        ("video.fps=0", ("video.fps = 0 ", "a number above 0")),
        ("video.fps=on", ("video.fps = True ", "not a number")),
        ("video.backend=ffmpeg", ("video.backend = 'ffmpeg'", "auto", "decord or pyav")),
        ("video.decode_timeout_s=0", ("video.decode_timeout_s = 0 ", "seconds above 0")),
        ("video.decode_timeout_s=.inf", ("video.decode_timeout_s = inf ", "seconds above 0")),
        ("video.decoder_memory_mb=100", ("video.decoder_memory_mb = 100 ", "MiB from 512")),
        ("video.decode_timeout=60", ("video.decode_timeout = 60", "did you mean video.decode_timeout_s?")),
        ("video.frames.count=3", ("video.frames", "whole number")),
        ("model.dtype=int8", ("model.dtype = 'int8'", "bfloat16")),
        ("model.quantization=int4", ("model.quantization = 'int4'", "none, int8 or fp8")),
        ("model.quantisation=int8", ("model.quantisation = 'int8'", "did you mean model.quantization?")),
        ("model.max_positions=0", ("model.max_positions = 0 ", "null", "whole number from 1")),
        ("model.max_positions=yes", ("model.max_positions = True", "not a number")),
        ("pruning.kv_retention=0", ("pruning.kv_retention = 0", "above 0")),
        ("generation.kv_retention=0.5", ("generation.kv_retention = 0.5", "did you mean pruning.kv_retention?")),
        ("generation.stop=the end", ("generation.stop = 'the end'", "a list of at most 16 texts")),
        ("generation.stop=['']", ("generation.stop = ''", "none empty")),
        ("generation.stop=[3]", ("generation.stop = 3 ", "a list of at most 16 texts")),
        ("generation.time_instruction=sometimes", ("generation.time_instruction = 'sometimes'", "true or false")),
        ("cluster.gpus_per_answerer=some", ("cluster.gpus_per_answerer = 'some'", "auto")),
        ("failures.stall_timeout_s=0", ("failures.stall_timeout_s = 0 ", "above 0")),
        ("cluster.rows_per_shard=0", ("cluster.rows_per_shard = 0 ", "1 to 65536")),
        ("failures.max_failed_share=2", ("failures.max_failed_share = 2 ", "from 0 to 1")),
        ("name=a b", ("name = 'a b'", "letters, digits")),
        ("task.kind=qa", ("task.kind", "not a section")),
        ("cluster.decoders", ("cluster.decoders", "key.path=value")),
        ("manifest=", ("manifest = None", ".parquet")),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_what_is_allowed(override, told):
    message = refusal(override)
    assert "\n" not in message
    for part in told:
        assert part in message


def test_an_option_of_another_method_is_refused():
    message = refusal("pruning.method=uniform", "pruning.tau=0.7")
    assert message.startswith("pruning.tau = 0.7 is not allowed: an option of hieravid, not of uniform")
    assert "pruning.tau" not in dump_config(load("pruning.method=uniform"), "0" * 12)


def test_several_mistakes_are_a_line_each():
    lines = refusal("video.frames=0", "budget.retention=2", "clutser.decoders=3").splitlines()
    assert len(lines) == 3


def test_missing_keys_are_named():
    with pytest.raises(UserError) as caught:
        load_config(None, [], "caption")
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == ["manifest", "output"]


@pytest.mark.parametrize(
    "override",
    [
        "manifest=https://u:hunter2secret@host/m.csv",
        "output=s3://b/x?X-Amz-Signature=hunter2secret",
        "model.aws_secret=hunter2secret",
        "s3.password=hunter2secret",
        "pruning.calibration=https://u:hunter2secret@host/c.json",
    ],
)
def test_secrets_in_a_config_are_refused_and_not_repeated(override):
    assert "hunter2secret" not in refusal(override)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("manifest: [a\noutput: b", "line 2"),
        ("manifest: a\nmanifest: b", "stands twice"),
        ("- a\n- b", "mapping"),
        ("1: a", "mapping"),
        ("!!python/object/apply:os.system [ls]", "line 1"),
    ],
)
def test_a_file_that_is_no_job_file_is_refused(tmp_path, text, told):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    message = refusal(path=path)
    assert str(path) in message
    assert told in message


def test_a_missing_job_file_is_refused(tmp_path):
    assert "not found" in refusal(path=tmp_path / "none.yaml")


def test_the_tree_has_a_description_for_every_key():
    def undescribed(model, prefix=""):
        for name, field in model.model_fields.items():
            if not field.description:
                yield prefix + name
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                yield from undescribed(field.annotation, f"{prefix}{name}.")

    assert list(undescribed(JobConfig)) == []


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_job_file_of_the_repository_is_one(path):
    assert load_config(path).name
