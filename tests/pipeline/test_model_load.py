import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import pipeline.tiny
from pipeline.config import ModelConfig
from pipeline.engine import ModelError
from pipeline.errors import UserError
from pipeline.model_load import find_model, load_engine, model_error
from pipeline.progress import Progress
from pipeline.storage import filesystem_for, join

TINY = Path(pipeline.tiny.__file__).parent / "checkpoint"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HIERAVID_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def s3_model(bucket):
    uri = join(bucket, "models", "tiny-on-s3")
    filesystem, path = filesystem_for(uri)
    for file in TINY.iterdir():
        filesystem.put_file(str(file), f"{path}/{file.name}")
    return uri


def find(**settings):
    told = []
    return find_model(ModelConfig(**settings), told.append), told


def test_a_model_that_lies_elsewhere_is_the_same_by_content(s3_model):
    builtin, quiet = find()
    fetched, told = find(source=s3_model)
    assert (quiet, told) == ([], [Progress("fetch")])
    assert fetched.info.model_hash == builtin.info.model_hash
    assert fetched.info.name == "tiny-on-s3"
    assert fetched.settings.source == s3_model
    assert fetched.info.calibration is not None
    engine = load_engine(fetched, "cpu", 1)
    assert (engine.info.name, engine.info.model_hash) == ("tiny-on-s3", builtin.info.model_hash)


def test_a_worker_loads_the_version_that_the_driver_found(s3_model):
    found, _ = find(source=s3_model)
    filesystem, path = filesystem_for(s3_model)
    filesystem.pipe_file(f"{path}/config.json", b"{}")
    assert load_engine(found, "cpu", 1).info.model_hash == found.info.model_hash


def test_a_folder_reads_the_same_in_another_directory(tmp_path, monkeypatch):
    shutil.copytree(TINY, tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    found, _ = find(source="models/tiny")
    monkeypatch.chdir("/")
    assert load_engine(found, "cpu", 1).info.name == "tiny"


def test_a_machine_with_another_model_of_that_name_is_refused(tmp_path):
    shutil.copytree(TINY, tmp_path / "tiny")
    found, _ = find(source=str(tmp_path / "tiny"))
    elsewhere = replace(found, info=replace(found.info, model_hash="0" * 64))
    with pytest.raises(ModelError, match=r"another model on this machine \([0-9a-f]{12}\) than .* \(000000000000\)"):
        load_engine(elsewhere, "cpu", 1)


def test_settings_reach_the_engine():
    found, _ = find(quantization="int8", max_positions=100_000, device="cpu")
    engine = load_engine(found, "cpu", 1)
    assert (engine.info.quantization, engine._family.decoder.max_positions) == ("int8", 100_000)


def test_what_is_wrong_names_its_key():
    with pytest.raises(UserError, match=r"^model\.quantization 'fp8' needs a CUDA device, not cpu$"):
        find(quantization="fp8", device="cpu")
    with pytest.raises(UserError, match=r"^model\.source: /no/such/folder: not a local folder"):
        find(source="/no/such/folder")
    assert str(model_error("/models/x: no config.json")) == "model.source: /models/x: no config.json"


def test_what_workers_with_a_gpu_may_do_is_not_refused_on_a_driver_without():
    assert find(quantization="fp8")[0].settings.quantization == "fp8"
