"""The one command: what it lists, what it says to mistakes, how it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.hieravid import COMMANDS, load_command, main, run

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "duckdb", "pyarrow", "transformers", "fsspec", "yaml")


def python(*words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


@pytest.mark.parametrize("words", [["--help"], []])
def test_the_commands_are_listed_without_loading_any(words):
    code = f"import sys; from jobs.hieravid import run; run({words}); print(*sys.modules, file=sys.stderr)"
    listed = python("-c", code)
    for name, told in COMMANDS.items():
        assert f"│ {name} " in listed.stdout
        assert " ".join(told.purpose.split()[:4]) in listed.stdout
    assert "Exit status: 0 done" in listed.stdout
    assert not set(HEAVY) & set(listed.stderr.split())


@pytest.mark.parametrize("name", ["submit", "status", "query"])
def test_the_help_of_a_light_command_loads_nothing_heavy(name):
    code = f"import sys; from jobs.hieravid import run; run(['{name}', '--help']); print(*sys.modules, file=sys.stderr)"
    assert not set(HEAVY) & set(python("-c", code).stderr.split())


@pytest.mark.parametrize("words", [["caption"], ["plan"], ["submit", "caption"]])
def test_a_mistake_in_the_job_file_is_told_before_anything_heavy_is_loaded(words, tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text("task: caption\nmanifest: m\noutput: o\npruning: {method: hieravit}\n")
    call = [*words, "--config", str(job)]
    code = f"import sys; from jobs.hieravid import run; run({call}); print(*sys.modules, file=sys.stderr)"
    told = python("-c", code).stderr
    assert "did you mean 'hieravid'?" in told
    assert not {"torch", "ray", "transformers"} & set(told.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_shows_help_with_an_example(name, capsys):
    assert run([name, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Usage: hieravid {name}" in shown
    assert f"Example: hieravid {name}" in shown


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("evaluate", "benchmark")])
def test_each_command_explains_its_exit_status(name, capsys):
    run([name, "--help"])
    assert "Exit status" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["plan", "status", "query", "doctor"])
def test_what_scripts_read_has_json(name):
    assert "--json" in {option for parameter in load_command(name).params for option in parameter.opts}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["querry"], "No such command 'querry'. Did you mean 'query'?"),
        (["qa", "--confg", "x"], "No such option: --confg"),
        (["caption"], "Missing option '--config'"),
        (["submit", "captions", "--config", "x"], "'captions' is not one of 'caption', 'qa'"),
        (["--nope"], "No such option: --nope"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(words, told, capsys):
    assert run(words) == 2
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert "--help" in line
    assert out == ""


@pytest.mark.parametrize("status", [0, 1, 2, 3, 130])
def test_the_exit_status_is_that_of_the_command(status, monkeypatch):
    monkeypatch.setattr("jobs.console.run_command", lambda *_: status)
    with pytest.raises(SystemExit) as ended:
        main(["caption", "--config", "a.yaml"])
    assert ended.value.code == status


def test_a_command_is_the_same_as_its_module(tmp_path):
    words = ["status", str(tmp_path)]
    ours, module = python("-m", "jobs.hieravid", *words), python("-m", f"jobs.{words[0]}", *words[1:])
    assert (ours.returncode, ours.stdout, ours.stderr) == (module.returncode, module.stdout, module.stderr)
    assert ours.returncode == 2


def test_a_shell_completes_commands_and_their_options():
    def complete(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        return python("-m", "jobs.hieravid", _HIERAVID_COMPLETE="complete_bash", **words).stdout.split()

    assert complete("hieravid qu") == ["query"]
    assert complete("hieravid status --js") == ["--json"]


def test_the_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hieravid 0.")
