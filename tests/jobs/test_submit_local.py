"""What a submission does on this machine, before a cluster hears of it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from jobs.hieravid import run
from pipeline.config_load import load_config
from pipeline.errors import UserError
from pipeline.storage import write_atomic
from pipeline.submit import check_storage, entrypoint, job_metadata, job_text, place_job
from pipeline.submit_cluster import exit_status_of, why_it_ended
from pipeline.submit_package import LARGE, copy_files, describe_large, find_files
from tests.jobs.conftest import BUCKET

ROOT = Path(__file__).resolve().parents[2]
MANY = 2**40


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a job in it, and the current one."""
    files = {
        **{
            "job.yaml": "",
            "manifest.jsonl": '{"uri": "s3://a/b.mp4"}\n',
            "jobs/caption.py": "",
            "calibration.json": "{}",
        },
        **{".env": "", ".git/config": "", ".venv/x.py": "", "jobs/__pycache__/a.pyc": "", "out/demo/a.parquet": ""},
        **{"deep/id_rsa": "", "deep/server.pem": "", "deep/notes.txt": "", "deep/out.txt": "", "a.egg-info/PKG": ""},
    }
    for name, text in files.items():
        path = tmp_path / "work" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path / "work")
    # Set, so that what a submission writes into it is taken back after the test.
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    return tmp_path / "work"


def job(**given):
    return load_config(None, [f"{key.replace('__', '.')}={value}" for key, value in given.items()], "caption")


def test_what_goes_along_and_what_stays(folder):
    names = ["calibration.json", "deep/notes.txt", "deep/out.txt", "job.yaml", "jobs/caption.py", "manifest.jsonl"]
    assert sorted(find_files(folder, [], MANY).sizes) == names
    assert sorted(find_files(folder, ["deep", "*.jsonl"], MANY).sizes) == [names[0], *names[3:5]]
    assert "deep/notes.txt" not in find_files(folder, ["deep/notes*"], MANY).sizes


def test_large_files_stay_and_are_named(folder):
    with (folder / "deep" / "video.mp4").open("wb") as file:
        file.truncate(LARGE + 1)
    files = find_files(folder, [], MANY)
    assert "deep/video.mp4" not in files.sizes
    assert describe_large(files) == "left out as larger than 32.0 MiB: deep/video.mp4 (32.0 MiB)"


def test_too_much_is_refused_with_its_culprits(folder):
    for name in ("data/a", "data/b", "small"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * (3 if name == "small" else 2) * 2**20)
    with pytest.raises(
        UserError, match=r"7\.0 MiB to send and Ray takes 5\.0 MiB.*data \(4\.0 MiB\), small \(3\.0 MiB\)"
    ):
        find_files(folder, [], 5 * 2**20)
    assert find_files(folder, ["data"], 5 * 2**20).size == pytest.approx(3 * 2**20, rel=0.1)


def test_a_folder_without_our_code_gets_it(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "manifest.jsonl").write_text("")
    files = find_files(tmp_path / "work", [], MANY)
    copy_files(files, tmp_path / "there")
    arrived = {str(path.relative_to(tmp_path / "there")) for path in (tmp_path / "there").rglob("*") if path.is_file()}
    assert {"manifest.jsonl", "jobs/caption.py", "pipeline/run.py", "pruning/__init__.py", "pyproject.toml"} <= arrived
    assert "pipeline/tiny/checkpoint/model.safetensors" in arrived
    assert not any("__pycache__" in name for name in arrived)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_a_job_file_that_is_sent_is_the_same_job(name, tmp_path):
    overrides = ["budget.retention=0.25", "generation.max_new_tokens=7", "pruning.kv_retention=0.5"]
    config = load_config(ROOT / "configs" / name, overrides)
    (tmp_path / "job.yaml").write_text(job_text(config))
    again = load_config(tmp_path / "job.yaml")
    assert again == config
    assert again.pruning.model_fields_set - {"retention"} == config.pruning.model_fields_set - {"retention"}


def test_only_what_was_set_is_written(folder):
    told = yaml.safe_load(job_text(job(manifest="s3://a/m.jsonl", output="s3://a/out", budget__retention=0.3)))
    assert told == {
        **{"manifest": "s3://a/m.jsonl", "output": "s3://a/out", "budget": {"retention": 0.3}, "pruning": {}},
        **{"task": "caption"},
    } | ({"generation": told["generation"]} if "generation" in told else {})


def test_a_credential_in_a_job_is_refused(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "planted-value-77")
    for prompt in ("use planted-value-77", "password: hunter2hunter2"):
        with pytest.raises(UserError, match="looks like a credential") as caught:
            job_text(job(manifest="m.jsonl", output="out", generation__prompt=prompt))
        assert "planted" not in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_local_results_make_all_local_paths_absolute(folder):
    sent = find_files(folder, [], MANY).sizes
    placed = place_job(
        job(manifest="manifest.jsonl", output="out/x", pruning__calibration="calibration.json"), folder, sent
    )
    assert (placed.manifest, placed.output) == (f"{folder}/manifest.jsonl", f"{folder}/out/x")
    assert placed.pruning.calibration == f"{folder}/calibration.json"


def test_with_results_elsewhere_files_are_read_from_what_was_sent(folder):
    sent = find_files(folder, [], MANY).sizes
    given = {"manifest": "./manifest.jsonl", "output": "s3://a/out", "pruning__calibration": "calibration.json"}
    placed = place_job(job(**given), folder, sent)
    assert (placed.manifest, placed.output) == ("manifest.jsonl", "s3://a/out")
    assert placed.pruning.calibration == "calibration.json"
    assert place_job(job(manifest="out/demo", output="s3://a/out"), folder, sent).manifest == f"{folder}/out/demo"
    assert place_job(job(**given, model__source="owner/name"), folder, sent).model.source == "owner/name"


def test_the_command_and_what_the_job_list_tells():
    config = job(manifest="s3://a/m.jsonl", output="s3://a/out", name="night")
    assert entrypoint("qa", ["--code", "it's"]).startswith("python -m jobs.qa --config hieravid-job.yaml --code 'it'")
    told = job_metadata(config, "text")
    assert (told["name"], told["task"], told["output"]) == ("night", "caption", "s3://a/out")
    assert told["version"].startswith("0.")
    assert all(isinstance(value, str) for value in told.values())


def test_storage_is_tried_with_these_credentials(s3_server, tmp_path):
    write_atomic(f"s3://{BUCKET}/submit/m.jsonl", b'{"uri": "s3://a/b.mp4"}\n')
    told = []
    check_storage(job(manifest=f"s3://{BUCKET}/submit/m.jsonl", output=f"s3://{BUCKET}/submit/out"), told.append)
    assert told == []
    with pytest.raises(UserError, match=r"gone\.jsonl: not found .*--no-storage-check"):
        check_storage(job(manifest=f"s3://{BUCKET}/submit/gone.jsonl", output=str(tmp_path)), told.append)
    check_storage(job(manifest="/mnt/nowhere/m.jsonl", output="/mnt/nowhere/deep/out"), told.append)
    assert ["/mnt/nowhere/m.jsonl: not found on this machine" in line for line in told] == [True, False]
    assert "/mnt/nowhere/deep/out is a local folder" in told[1]


@pytest.mark.parametrize(
    ("status", "code", "expected", "told"),
    [
        ("SUCCEEDED", 0, 0, ""),
        ("FAILED", 1, 1, ""),
        ("FAILED", 2, 2, ""),
        ("FAILED", 3, 3, ""),
        ("FAILED", 130, 130, ""),
        ("FAILED", -9, 3, "ended with -9"),
        ("FAILED", 127, 3, "could not start"),
        ("FAILED", None, 3, "runtime env failed"),
        ("STOPPED", None, 130, "the job was stopped"),
    ],
)
def test_how_a_job_ended(status, code, expected, told):
    details = SimpleNamespace(status=status, driver_exit_code=code, message="runtime env failed\nmore")
    assert exit_status_of(details) == expected
    assert told in why_it_ended(details)
    assert bool(told) == bool(why_it_ended(details))


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["budget.retentoin=0.3"], 2, "did you mean budget.retention?"),
        (["task=qa"], 2, "this is the caption job"),
        (["manifest=gone.jsonl"], 2, "gone.jsonl"),
        (["--code", "lost"], 2, "needs --retry-failed"),
        (["--working-dir", "gone"], 2, "there is no such folder"),
        (["generation.prompt=password: hunter2hunter2"], 2, "looks like a credential"),
        (["manifest=s3://key:secret@bucket/m.jsonl"], 2, "credentials"),
        ([], 3, "no job server at http://127.0.0.1:9"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_is_sent(folder, capsys, words, status, told):
    (folder / "job.yaml").write_text("task: caption\nmanifest: manifest.jsonl\noutput: out/x\n")
    assert run(["submit", "caption", "--config", "job.yaml", "--address", "http://127.0.0.1:9", *words]) == status
    out, err = capsys.readouterr()
    assert out == ""
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert told in line
    assert not {"hunter2hunter2", "key:secret"} & set(err.split())
