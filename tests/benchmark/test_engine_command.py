"""`python -m jobs.benchmark engine`."""

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import jobs.benchmark
from pipeline.benchmark.engine.growth import peaks_beside_weights
from pipeline.benchmark.engine.measurement import Row
from pipeline.benchmark.engine.shapes import SHAPES
from pipeline.benchmark.engine.subject import Subject, check_fits
from pipeline.engine import ModelError

QUICK = ["--repeats=1", "--retention=1.0", "--retention=0.3", "--segments=2", "--new-tokens=2"]
CPU = torch.device("cpu")


def call(*arguments):
    return CliRunner().invoke(jobs.benchmark.app, ["engine", "--device=cpu", *arguments])


@pytest.mark.parametrize(("weights", "name"), [([], "builtin:tiny"), (["--random-weights"], "random")])
def test_it_prints_a_table_and_writes_header_rows_and_aims(tmp_path, weights, name):
    threads = torch.get_num_threads()
    file = tmp_path / "out" / "engine.json"
    batches = ["--batch=2", "--dense-batch=2", f"--threads={threads}"]
    done = call("--shape=tiny", *weights, *QUICK, *batches, "--json", str(file))
    assert done.exit_code == 0, done.output
    content = json.loads(file.read_text())
    assert content.keys() == {"header", "rows", "aims"}
    header = content["header"]
    assert header.keys() > {"device", "measured_at", "commit", "torch", "transformers", "matmul_tflops", "copy_gbs"}
    assert (header["shape"], header["weights"], header["video_tokens"]) == ("tiny", name, 576)
    assert header["decoder"]["layers"] == 8
    rows = content["rows"]
    assert [(row["system"], row["retention"], row["segments"], row["batch"]) for row in rows] == [
        ("transformers", 1.0, None, 1),
        ("transformers", 1.0, None, 2),
        ("engine", 1.0, 2, 1),
        ("engine", 0.3, 2, 1),
        ("engine", 0.3, 2, 2),
    ]
    assert all(list(row) == list(Row.__dataclass_fields__) for row in rows)
    assert len(content["aims"]) == sum(line.startswith(("  pass", "  FAIL")) for line in done.output.splitlines())
    assert "transformers" in done.output
    assert f"commit {header['commit']}" in done.output


def test_a_folder_takes_the_place_of_random_weights(tmp_path):
    done = call(
        "--shape=small", "--frames=2", f"--model={SHAPES['tiny'].source}", *QUICK, "--batch=1", "--dense-batch=1"
    )
    assert done.exit_code == 0, done.output
    assert "builtin:tiny weights, 2 frames of 72 tokens" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--segments=17"], "16 frames of this model show 1 to 16 segments"),
        (["--model=/nowhere"], "/nowhere: not a local folder with a model"),
        (["--frames=64", "--segments=1", "--retention=1.0"], "exceed the 1024 positions"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(arguments, message):
    done = call("--shape=tiny", "--dense-batch=1", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_an_unknown_shape_is_a_usage_error():
    assert call("--shape=huge").exit_code == 2


@pytest.mark.parametrize("name", ["llava-onevision-7b", "llava-video-7b", "qwen2-vl-7b"])
def test_a_shape_that_does_not_fit_is_refused_with_its_sizes(name, monkeypatch):
    monkeypatch.setattr("pipeline.benchmark.engine.subject.free_bytes", lambda device: 12 * 2**30)
    words = (
        rf"{name} needs 1\d\.\d GiB for its weights in bfloat16 and .* GiB for one video of .*, the cpu has 12.0 GiB"
    )
    with pytest.raises(ModelError, match=words):
        Subject.load(SHAPES[name], None, torch.bfloat16, CPU)


@pytest.mark.parametrize(
    ("name", "tokens"), [("llava-onevision-7b", 32 * 196), ("llava-video-7b", 64 * 210), ("qwen2-vl-7b", 32 * 13 * 23)]
)
def test_the_published_shapes_have_the_published_sizes(name, tokens, monkeypatch):
    monkeypatch.setattr("pipeline.benchmark.engine.subject.free_bytes", lambda device: 200 * 2**30)
    check_fits(SHAPES[name], torch.bfloat16, CPU)
    family = SHAPES[name].build(torch.bfloat16, torch.device("meta"))
    numbers = sum(weight.numel() for weight in family._model.parameters())
    assert numbers == pytest.approx(8.1e9, rel=0.03)
    assert (family.decoder.shape.layers, family.decoder.shape.ffn) == (28, 18_944)
    assert family.grid(SHAPES[name].frames, SHAPES[name].frame_size).tokens == tokens


def test_a_peak_leaves_out_what_was_there_before_the_video():
    peaks = peaks_beside_weights("tiny", None, "cpu", "float32", None, 1, frames=(20,))
    assert set(peaks) == {20}
    assert 0.5 < peaks[20] < 200  # the frames alone are 0.5 MiB; the process with torch in it is larger


def test_it_runs_on_a_bare_gpu_box():
    code = """
import sys
for name in ("ray", "pyarrow", "decord", "av", "duckdb", "s3fs", "fsspec", "torchvision", "PIL", "matplotlib"):
    sys.modules[name] = None
from typer.testing import CliRunner
import jobs.benchmark
options = "--repeats=1 --retention=0.5 --segments=1 --new-tokens=2 --frames=2 --batch=1 --dense-batch=1"
done = CliRunner().invoke(jobs.benchmark.app, ["engine", "--device=cpu", *options.split()])
print(done.output)
sys.exit(done.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
