"""Clips of the procedural world as tasks of lmms-eval: MP4 files, questions with references, and two YAML files.

`hieravid_clips` lets the model answer each question in words or with a letter, and compares the whole answer;
`hieravid_clips_choice` asks the lettered questions alone, and takes the letter that fits best.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from string import Template, ascii_uppercase
from typing import Any

from pipeline.prompts import with_options
from pipeline.tiny.clips import write_dataset

TASK = "hieravid_clips"
CHOICE_TASK = "hieravid_clips_choice"

# lmms-eval finds the functions of a task by the names after `!function`.
_COMMON = """\
dataset_path: json
dataset_kwargs:
  data_files:
    test: $questions
test_split: test
doc_to_visual: !function pipeline.evaluate.lmms_clips.show_video
doc_to_text: !function pipeline.evaluate.lmms_clips.ask
"""
_TASK = Template(f"""\
task: {TASK}
{_COMMON}\
output_type: generate_until
generation_kwargs:
  max_new_tokens: 16
  do_sample: false
doc_to_target: reference
process_results: !function pipeline.evaluate.lmms_clips.score
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
""")
_CHOICE_TASK = Template(f"""\
task: {CHOICE_TASK}
{_COMMON}\
output_type: multiple_choice
doc_to_choice: !function pipeline.evaluate.lmms_clips.letters
doc_to_target: !function pipeline.evaluate.lmms_clips.right_place
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""")


def write_tasks(seeds: Sequence[int], folder: Path, cache: Path | None = None) -> None:
    """Videos, questions and task files for the clips of `seeds`, in `folder`: lmms-eval's `--include_path`.

    `cache` is a folder of videos to reuse and add to. The files name the folder's place: it cannot be moved.
    """
    write_dataset(seeds, folder, cache)
    rows = [json.loads(line) for line in (folder / "qa.jsonl").read_text().splitlines()]
    docs = [
        {
            "video": str((folder / row["uri"]).resolve()),
            "question": row["question"],
            "options": row.get("options", []),
            "reference": row["reference"],
            "kind": row["kind"],
        }
        for row in rows
    ]
    for task, template, chosen in (
        (TASK, _TASK, docs),
        (CHOICE_TASK, _CHOICE_TASK, [doc for doc in docs if doc["options"]]),
    ):
        path = (folder / f"{task}.jsonl").resolve()
        path.write_text("".join(json.dumps(doc) + "\n" for doc in chosen))
        (folder / f"{task}.yaml").write_text(template.substitute(questions=json.dumps(str(path))))


def show_video(doc: dict[str, Any]) -> list[str]:
    """The path of the clip."""
    return [doc["video"]]


def ask(doc: dict[str, Any]) -> str:
    """The question, with its options as the public benchmarks show them."""
    return with_options(doc["question"], doc["options"])


def letters(doc: dict[str, Any]) -> list[str]:
    """A letter for each option."""
    return list(ascii_uppercase[: len(doc["options"])])


def right_place(doc: dict[str, Any]) -> int:
    """Which option is the right one, from 0."""
    return ascii_uppercase.index(doc["reference"])


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 for an answer that is the reference word for word, else 0."""
    return {"accuracy": float(results[0].strip() == doc["reference"])}
