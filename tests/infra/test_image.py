"""The container image, read as what its builder would do."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.files import INFRA, ROOT

CONTAINERFILE = (INFRA / "image" / "Containerfile").read_text()
BUILD_TOOLS = ("gcc", "build-essential", "make", "git", "pip install")


def stages() -> dict[str, list[tuple[str, str]]]:
    """Each stage's instructions, by the name of the stage; the last one's is empty."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", CONTAINERFILE, flags=re.MULTILINE)).splitlines()
    found: dict[str, list[tuple[str, str]]] = {"": []}
    name = ""
    for line in filter(None, lines):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = [("FROM", base)]
        else:
            found[name].append((word, rest))
    return found


def told(stage: str, word: str) -> list[str]:
    return [rest for instruction, rest in stages()[stage] if instruction == word]


def test_every_stage_builds_on_another_or_on_the_pinned_base():
    known = set(stages()) | {"${PYTHON_IMAGE}"}
    for name, instructions in stages().items():
        base = next(rest for word, rest in instructions if word == "FROM")
        for device in ("cpu", "cuda"):
            assert base.replace("${DEVICE}", device) in known, name
    assert "DEVICE=cpu" in re.findall(r"^ARG (.+)$", CONTAINERFILE, re.MULTILINE)


def test_the_base_is_the_python_that_the_package_asks_for():
    [image] = re.findall(r"^ARG PYTHON_IMAGE=.*/python:(\S+)$", CONTAINERFILE, re.MULTILINE)
    version = re.fullmatch(r"(\d+\.\d+)\.\d+-slim-\w+", image)
    assert f'requires-python = ">={version[1]}"' in (ROOT / "pyproject.toml").read_text()


def test_what_is_copied_is_there_and_reaches_the_builder():
    copied = {path for copy in told("build", "COPY") for path in copy.split()[:-1]}
    copied |= {
        path for stage in ("torch-cpu", "torch-cuda") for copy in told(stage, "COPY") for path in copy.split()[:-1]
    }
    assert copied == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "jobs", "pipeline", "pruning"}
    assert all((ROOT / path).exists() for path in copied)
    kept = (INFRA / "image" / "Containerfile.dockerignore").read_text().split()
    assert kept[0] == "*"
    assert {line[1:] for line in kept if line.startswith("!")} == copied


def test_every_installation_keeps_to_the_constraints():
    installs = [run for stage in stages() for run in told(stage, "RUN") if "pip install" in run]
    assert len(installs) == 3
    assert all("-c /src/constraints.txt" in run for run in installs)


def test_the_image_for_a_cpu_has_no_build_tools_and_both_run_as_nobody():
    final = stages()[""]
    assert told("runtime-cpu", "RUN") == []
    assert not any(tool in run for run in told("", "RUN") for tool in BUILD_TOOLS)
    assert [rest for word, rest in final if word == "USER"] == ["1000:1000"]
    assert final.index(("USER", "1000:1000")) > max(place for place, (word, _) in enumerate(final) if word == "RUN")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_its_steps_make_an_environment_that_has_the_commands(tmp_path):
    """The installation of the image for a CPU, in a fresh folder in the place of a fresh root."""
    source, target = tmp_path / "src", tmp_path / "hieravid"
    source.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment |= {
        name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HTTP", "http"))
    }
    for stage in ("torch-cpu", "build"):
        for copy in told(stage, "COPY"):
            for path in copy.split()[:-1]:
                place = ROOT / path
                (shutil.copytree if place.is_dir() else shutil.copy)(place, source / path)
        for run in told(stage, "RUN"):
            run = run.replace("/opt/hieravid", str(target)).replace("/src", str(source))
            run = re.sub(r"^python ", f"{sys.executable} ", run)
            index = os.environ.get("TORCH_INDEX_URL")  # as make has it; the package index where there is none
            run = run.replace("--index-url ${TORCH_INDEX_URL}", f"--index-url {index}" if index else "")
            subprocess.run(["sh", "-ec", run], check=True, env=environment, cwd=tmp_path, timeout=1500)
    shutil.rmtree(source)
    for command in (["hieravid", "--version"], ["python", "-m", "jobs.caption", "--help"], ["ray", "--version"]):
        program = Path(target, "bin", command[0])
        subprocess.run([program, *command[1:]], check=True, cwd=tmp_path, env=environment, capture_output=True)
    check = "import boto3; from pipeline.engine import VideoLLM; VideoLLM.load('builtin:tiny')"
    subprocess.run([target / "bin" / "python", "-c", check], check=True, cwd=tmp_path, env=environment)
