import json
from dataclasses import replace

import pytest

from pipeline.config_load import dump_config, load_config
from pipeline.engine import ModelInfo
from pipeline.errors import UserError
from pipeline.fingerprint import fingerprint
from pipeline.frame_size import FixedSize
from pipeline.resolve import resolve_pruning
from pipeline.storage import join, write_atomic
from pruning.calibration import Calibration

HASH = "a" * 64
SIZE = FixedSize(384, 384)
MODEL = ModelInfo("some-7b", HASH, "LlavaOnevision", "float32", "cpu", 32, SIZE, 28, 3584, 32768, 196, None)


def write_calibration(place, name="calibration.json", **changes):
    content = Calibration(format=1, model="some-7b", model_hash=HASH, method="hieravid", options={"beta": 0.25})
    uri = join(str(place), name)
    write_atomic(uri, json.dumps({**content.model_dump(), **changes}).encode())
    return uri


def resolved(job, *overrides, model=MODEL):
    return resolve_pruning(job("clips.jsonl", "budget.retention=0.3", *overrides), model)


def refusal(job, *overrides, model=MODEL):
    with pytest.raises(UserError) as caught:
        resolved(job, *overrides, model=model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_named_calibration_becomes_plain_options(job, place):
    uri = write_calibration(place)
    pruning = resolved(job, f"pruning.calibration={uri}", "pruning.tau=0.7").pruning
    assert (pruning.beta, pruning.tau, pruning.retention, pruning.calibration) == (0.25, 0.7, 0.3, None)


def test_the_resolved_config_reproduces_the_run_without_the_file(job, tmp_path):
    uri = write_calibration(tmp_path)
    config = resolved(job, f"pruning.calibration={uri}")
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config, fingerprint(config, HASH)))
    (tmp_path / "calibration.json").unlink()
    again = resolve_pruning(load_config(path), MODEL)
    assert again == config
    assert fingerprint(again, HASH) == fingerprint(config, HASH)


def test_what_is_kept_in_the_cache_stands_beside_a_calibration(job, tmp_path):
    pruning = resolved(job, f"pruning.calibration={write_calibration(tmp_path)}", "pruning.kv_retention=0.5").pruning
    assert (pruning.beta, pruning.kv_retention) == (0.25, 0.5)


def test_the_fingerprint_follows_the_calibration_s_content(job, tmp_path):
    def of(*overrides):
        return fingerprint(resolved(job, *overrides), HASH)

    one = write_calibration(tmp_path, "one.json")
    same = write_calibration(tmp_path, "same.json", evidence={"clips": 3})
    other = write_calibration(tmp_path, "other.json", options={"beta": 0.3})
    assert of(f"pruning.calibration={one}") == of(f"pruning.calibration={same}") != of()
    assert of(f"pruning.calibration={one}") != of(f"pruning.calibration={other}")


def test_a_preset_or_null_leaves_the_model_s_own_calibration_out(job, tmp_path):
    own = tmp_path / "calibration.json"
    write_calibration(tmp_path)
    model = ModelInfo(**{**vars(MODEL), "calibration": own})
    assert resolved(job, model=model).pruning.beta == 0.25
    assert resolved(job, "pruning.preset=author", model=model).pruning.beta == 0.4
    assert resolved(job, "pruning.calibration=null", model=model).pruning.merge_across_segments


def test_a_calibration_of_another_model_names_key_and_models(job, tmp_path):
    uri = write_calibration(tmp_path, model="other-13b", model_hash="b" * 64)
    told = refusal(job, f"pruning.calibration={uri}")
    assert told.startswith(f"pruning.calibration = '{uri}': ")
    assert "other-13b (bbbbbbbbbbbb)" in told
    assert "some-7b (aaaaaaaaaaaa)" in told


def test_a_calibration_that_is_none_names_the_key(job, tmp_path, bucket):
    uri = write_calibration(tmp_path, format=3)
    assert refusal(job, f"pruning.calibration={uri}").startswith(f"pruning.calibration = '{uri}': ")
    for missing in (f"{tmp_path}/none.json", f"{bucket}/none.json"):
        told = refusal(job, f"pruning.calibration={missing}")
        assert told.startswith("pruning.calibration = ")
        assert "not found" in told


def test_a_budget_out_of_reach_names_key_and_range(job):
    # Two of 28 layers with all tokens, then one token: (2 + 26 / 6272) / 28.
    told = refusal(job, "pruning.method=fastv", "budget.retention=0.07")
    assert told.startswith("budget.retention = 0.07 is out of reach for pruning.method fastv on some-7b")
    assert "from 0.0716 to 1" in told
    assert resolved(job, "pruning.method=fastv", "budget.retention=0.0716").budget.retention == 0.0716


def test_a_shorter_video_s_reach_is_that_of_its_tokens(job):
    assert "from 0.0762 to 1" in refusal(job, "pruning.method=fastv", "budget.retention=0.07", "video.frames=1")


def test_frames_that_a_model_takes_in_pairs_count_as_one_of_the_grid(job):
    pairs = replace(MODEL, frames_per_step=2, default_frames=8)  # 392 tokens a pair
    # EVS keeps the first frame of the grid whole, one of 4 or of 2, and FastV two of 28 layers and one token.
    assert resolved(job, "pruning.method=evs", "budget.retention=0.25", model=pairs).pruning.retention == 0.25
    assert "from 0.25 to 1" in refusal(job, "pruning.method=evs", "budget.retention=0.24", model=pairs)
    odd = ("pruning.method=evs", "video.frames=3", "budget.retention=0.5")
    assert resolved(job, *odd, model=pairs).pruning.retention == 0.5
    fastv = ("pruning.method=fastv", "budget.retention=0.07", "video.frames=1")
    assert "from 0.0738 to 1" in refusal(job, *fastv, model=pairs)  # (2 + 26 / 392) / 28: the frame stands twice


@pytest.mark.parametrize("layers", [1, 2, 3, 28])
def test_hieravid_reaches_any_budget_on_any_number_of_layers(job, layers):
    model = ModelInfo(**{**vars(MODEL), "num_layers": layers})
    assert resolved(job, "budget.retention=0.0001", model=model).pruning.retention == 0.0001
