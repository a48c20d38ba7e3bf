"""The pages that people read: what they link to and name exists."""

import re
from pathlib import Path

import pytest

from jobs.hieravid import COMMANDS
from pipeline.config import JobConfig

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("configs", "infra", "pipeline", "pruning")
PAGES = [ROOT / "README.md", *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@EACH_PAGE
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" not in target:
            place = (page.parent / path).resolve() if path else page
            assert place.exists(), target
            assert not anchor or anchor in anchors(place.read_text()), target


@EACH_PAGE
def test_commands_and_files_that_are_named_exist(page):
    text = page.read_text()
    named = re.findall(r"(?<!-n )\bhieravid ([a-z]+) ", " ".join(re.findall(r"`([^`]+)`", text)))
    assert set(named) <= set(COMMANDS)
    for path in re.findall(r"\b(?:configs|infra)/[\w./-]+\w", text):
        assert (ROOT / path).exists(), path


@EACH_PAGE
def test_keys_of_the_job_file_exist(page):
    sections = "|".join(key for key in JobConfig.model_fields if key not in ("task", "name", "manifest", "output"))
    for section, key in re.findall(rf"`({sections})\.(?!py`)(\w+)", page.read_text()):
        assert key in JobConfig.model_fields[section].annotation.model_fields, f"{section}.{key}"


def test_every_folder_of_pages_is_reached_from_the_first():
    first = (ROOT / "README.md").read_text()
    for page in PAGES:
        assert page.name != "README.md" or page == ROOT / "README.md" or f"({page.relative_to(ROOT)}" in first, page
