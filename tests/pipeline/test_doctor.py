"""How checks are run and judged, and what is found on this machine."""

import resource
import shutil
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.doctor import codecs, device, machine, software
from pipeline.doctor.check import Check, Finding, examine, exit_status
from pipeline.errors import ClusterError, UserError

OK = Finding("ok", "fine")
WRONG = Finding("fail", "wrong", "mend it")
AWAY = Finding("fail", "away", "", is_away=True)


def raising(error: Exception):
    def look() -> Finding:
        raise error

    return look


def test_what_a_check_raises_is_its_finding(monkeypatch):
    monkeypatch.setenv("NIGHT_API_KEY", "planted-0123456789")
    checks = [
        Check("good", lambda: OK),
        Check("user", raising(UserError("no such\nfolder")), advice="look again"),
        Check("cluster", raising(ClusterError("nobody there")), advice="start it"),
        Check("other", raising(ImportError("libfoo.so says planted-0123456789")), advice="install it"),
    ]
    assert examine(checks) == [
        ("good", OK),
        ("user", Finding("fail", "no such folder", "look again")),
        ("cluster", Finding("fail", "nobody there", "start it", is_away=True)),
        ("other", Finding("fail", "ImportError: libfoo.so says ***", "install it")),
    ]


def test_a_check_that_hangs_is_left_behind():
    never = threading.Event()
    checks = [Check(name, lambda: never.wait() and OK, 0.05, "ping it", name == "far") for name in ("far", "near")]
    found = dict(examine([*checks, Check("good", lambda: OK)]))
    never.set()
    assert found == {
        "far": Finding("fail", "no answer within 0.05 s", "ping it", is_away=True),
        "near": Finding("fail", "no answer within 0.05 s", "ping it"),
        "good": OK,
    }


@pytest.mark.parametrize(
    ("findings", "status"),
    [
        ([], 0),
        ([OK, Finding("warn", "little"), Finding("skipped", "none")], 0),
        ([OK, WRONG], 2),
        ([OK, AWAY], 3),
        ([AWAY, WRONG], 2),
    ],
)
def test_the_exit_status_says_who_must_act(findings, status):
    assert exit_status([("x", finding) for finding in findings]) == status


def test_this_installation_is_as_declared():
    assert software.look_at_python().status == "ok"
    assert software.look_at_packages().status == "ok"


def test_packages_that_are_missing_or_out_of_range_are_named(monkeypatch):
    real = metadata.version

    def version(name: str) -> str:
        if name == "decord":
            raise metadata.PackageNotFoundError(name)
        return {"torch": "2.9.1+cu128", "transformers": "5.20.0.dev0"}.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = software.look_at_packages()
    assert found.status == "fail"
    assert found.found.startswith("torch 2.9.1+cu128, and ")
    assert found.found.endswith("decord is not installed")
    assert "transformers" not in found.found
    assert "'decord>=0.6'" in found.advice


def test_an_old_python_fails(monkeypatch):
    monkeypatch.setattr(software.platform, "python_version", lambda: "3.10.2")
    found = software.look_at_python()
    assert (found.status, found.found) == ("fail", "Python 3.10.2, and >=3.11 is needed")


def test_without_its_packages_the_doctor_still_tells_what_is_missing(tmp_path):
    # A package of that name that cannot be imported stands before the real one.
    (tmp_path / "av.py").write_text("raise ImportError('libavcodec.so.62: cannot open shared object file')")
    program = "from pipeline.doctor.check import examine; from pipeline.doctor.checks import machine_checks\n"
    program += "print(examine([c for c in machine_checks(None) if c.name == 'codecs']))"
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    run = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert "libavcodec.so.62: cannot open" in run.stdout, run.stderr
    assert "pip install" in run.stdout


def test_every_codec_is_written_and_read_here():
    found = codecs.look_at_codecs()
    assert found.status == "ok"
    assert found.found.endswith("decoded H.264, HEVC, VP9, AV1")
    assert codecs.look_at_decord().status == "ok"


@pytest.mark.parametrize(("broken", "status"), [("av1", "warn"), ("h264", "fail")])
def test_a_codec_that_cannot_be_decoded_is_named(monkeypatch, broken, status):
    write = codecs._write

    def damaged(codec, folder):
        if codec.name == "vp9":
            return None  # as where FFmpeg has no encoder
        path = write(codec, folder)
        if codec.name == broken:
            path.write_bytes(path.read_bytes()[:200])
        return path

    monkeypatch.setattr(codecs, "_write", damaged)
    found = codecs.look_at_codecs()
    title = {"av1": "AV1", "h264": "H.264"}[broken]
    assert found.status == status
    assert found.found.endswith(f"there is a decoder of VP9; not decoded {title}")
    assert codecs.look_at_decord().status == ("warn" if broken == "h264" else "ok")


def usage(free_gib: float, total_gib: float = 100.0) -> SimpleNamespace:
    return SimpleNamespace(
        free=int(free_gib * 2**30), total=int(total_gib * 2**30), used=int((total_gib - free_gib) * 2**30)
    )


@pytest.mark.parametrize(
    ("free", "total", "status"), [(50, 100, "ok"), (20, 1000, "warn"), (5, 100, "warn"), (0.5, 100, "fail")]
)
def test_a_disk_without_room_is_told(monkeypatch, tmp_path, free, total, status):
    monkeypatch.setenv("HIERAVID_CACHE", str(tmp_path / "not" / "there" / "yet"))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(free, total))
    found = machine.look_at_disks()
    assert found.status == status
    assert str(tmp_path) in found.found
    assert ("HIERAVID_CACHE" in found.advice) == (status != "ok")


@pytest.mark.parametrize(("free", "status"), [(0.06, "warn"), (64, "ok")])
def test_small_shared_memory_is_told(monkeypatch, free, status):
    monkeypatch.setattr(machine, "_SHARED", Path("/"))
    monkeypatch.setattr(machine, "_memory", lambda: 100 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(free))
    found = machine.look_at_shared_memory()
    assert found.status == status
    assert ("--shm-size=33g" in found.advice) == (status == "warn")


@pytest.mark.parametrize(
    ("limits", "status"), [((1024, 1_048_576), "ok"), ((1024, 4096), "warn"), ((1024, resource.RLIM_INFINITY), "ok")]
)
def test_a_low_limit_of_open_files_is_told(monkeypatch, limits, status):
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    assert machine.look_at_open_files().status == status


@pytest.mark.parametrize(
    ("wanted", "driver", "build", "status", "told"),
    [
        ("auto", None, None, "ok", "no GPU: CPU float32"),
        ("cpu", "580.65", "13.0", "ok", "no GPU: CPU float32"),
        ("auto", "580.65", None, "fail", "built without CUDA"),
        ("auto", "525.60", "13.0", "fail", "cannot use it"),
        ("cuda", None, None, "fail", "model.device is cuda"),
    ],
)
def test_a_machine_on_which_torch_finds_no_gpu(monkeypatch, wanted, driver, build, status, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    monkeypatch.setattr(device, "_driver_version", lambda: driver)
    found = device.look_at_device(wanted)
    assert found.status == status
    assert told in found.found
    assert bool(found.advice) == (status == "fail")


def test_the_drivers_version_is_read_from_the_kernels_words(monkeypatch, tmp_path):
    words = tmp_path / "version"
    words.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n")
    monkeypatch.setattr(device, "_DRIVER", words)
    assert device._driver_version() == "535.183.01"
    monkeypatch.setattr(device, "_DRIVER", tmp_path / "none")
    assert device._driver_version() is None


@pytest.mark.parametrize(("works", "status"), [(True, "ok"), (False, "fail")])
def test_each_gpu_is_made_to_compute(monkeypatch, works, status):
    def arange(*_: object, device: torch.device, **__: object) -> torch.Tensor:
        if device.index == 1 and not works:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")
        return torch.tensor([0.0, 1.0, 2.0, 3.0])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda where: f"GPU {where.index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * 2**30, 4 * 2**30))
    monkeypatch.setattr(torch, "arange", arange)
    found = device.look_at_device("auto")
    assert found.status == status
    assert "GPU 0, 3.0 of 4.0 GiB free" in found.found
    assert ("GPU 1 does not compute (CUDA error: no kernel image" in found.found) == (not works)
