"""A cell: one variant at one budget on one range of clips, and the file of its answers.

The file's name holds a hash of all that can change an answer, the sources of the engine and of the
methods included: a finished cell is never computed twice, and a stale one is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import DEFAULT_CAPTION_PROMPT
from pipeline.engine import Answer, ModelInfo, Request, VideoLLM
from pipeline.evaluate.clips import ClipRange, EncodedClip, source_hash
from pipeline.evaluate.variants import pruner_of
from pipeline.evaluate.workload import Budget
from pipeline.prompts import with_options
from pipeline.tiny.language import caption_f1
from pruning import Pruner, PruningConfig

CAPTION = "caption"
"""The kind of the records that hold captions; every other kind is a kind of question."""
MAX_ANSWER_TOKENS = 4
MAX_CAPTION_TOKENS = 128

RECORD_SCHEMA = pa.schema(
    [
        ("seed", pa.int64()),
        ("number", pa.int64()),  # the question's place among those of its clip
        ("kind", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("truth", pa.string()),
        ("correct", pa.bool_()),  # exact match; null for a caption
        ("score", pa.float64()),  # 1 or 0 for a question, F1 over facts for a caption
        ("retention_achieved", pa.float64()),
        ("flops_ratio", pa.float64()),
        ("kv_ratio", pa.float64()),
        ("prune_ms", pa.float64()),
        ("prefill_ms", pa.float64()),
    ]
)

_ANSWERING_SOURCES = (
    "pruning",
    "pipeline/engine",
    "pipeline/prompts.py",
    "pipeline/tiny/clips.py",
    "pipeline/tiny/language.py",
    "pipeline/tiny/oracle.py",
    "pipeline/tiny/world.py",
    "pipeline/evaluate/cells.py",
    "pipeline/evaluate/clips.py",
)


@dataclass(frozen=True)
class Cell:
    """What is asked of the model: `config` has all options written out (None is the oracle).

    The first `captions` clips also get a caption. `label` is the name in tables; it does not
    take part in the key.
    """

    label: str
    config: PruningConfig | None
    budget: Budget
    clips: ClipRange
    captions: int

    def key(self, model: ModelInfo) -> str:
        """16 hexadecimal digits over everything that can change the cell's records.

        Of the budget its plan counts, since a method learns nothing else about it: cells of
        several comparisons that come to the same tokens are one.
        """
        facts = {
            "model": [model.model_hash, model.dtype, model.device, model.quantization],
            "config": self.config and self.config.model_dump(mode="json", exclude={"retention"}),
            "plan": asdict(self.budget.plan),
            "clips": asdict(self.clips),
            "captions": self.captions,
            "limits": [MAX_ANSWER_TOKENS, MAX_CAPTION_TOKENS],
            "sources": _answering_sources(),
        }
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def file(self, folder: Path, model: ModelInfo) -> Path:
        """Where the records lie or will lie."""
        method = self.config.method if self.config else "oracle"
        return folder / f"{re.sub(r'[^A-Za-z0-9]+', '-', method)}-{self.key(model)}.parquet"


@cache
def _answering_sources() -> str:
    return source_hash(_ANSWERING_SOURCES)


def run_cell(llm: VideoLLM, cell: Cell, clips: Sequence[EncodedClip]) -> pa.Table:
    """Ask a cell's questions and captions; `clips` are those of its range, in order."""
    return pa.Table.from_pylist(
        [*_questions(llm, cell, clips), *_captions(llm, cell, clips[: cell.captions])], schema=RECORD_SCHEMA
    )


def write_records(table: pa.Table, path: Path) -> None:
    """Write a cell's records whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    pq.write_table(table, partial)
    partial.replace(path)


def _questions(llm: VideoLLM, cell: Cell, clips: Sequence[EncodedClip]) -> Iterator[dict[str, Any]]:
    asked = [(clip, number, question) for clip in clips for number, question in enumerate(clip.questions)]
    prompts = [with_options(question.text, question.options) for _, _, question in asked]
    requests = [
        _request(clip, prompt, MAX_ANSWER_TOKENS, cell) for (clip, _, _), prompt in zip(asked, prompts, strict=True)
    ]
    answers = llm.answer(requests, _method(cell))
    for (clip, number, question), prompt, answer in zip(asked, prompts, answers, strict=True):
        correct = answer.text == question.answer
        yield {
            "seed": clip.seed,
            "number": number,
            "kind": question.kind,
            "prompt": prompt,
            "answer": answer.text,
            "truth": question.answer,
            "correct": correct,
            "score": float(correct),
            **_costs(answer),
        }


def _captions(llm: VideoLLM, cell: Cell, clips: Sequence[EncodedClip]) -> Iterator[dict[str, Any]]:
    requests = [_request(clip, DEFAULT_CAPTION_PROMPT, MAX_CAPTION_TOKENS, cell) for clip in clips]
    for clip, answer in zip(clips, llm.answer(requests, _method(cell)), strict=True):
        yield {
            "seed": clip.seed,
            "number": 0,
            "kind": CAPTION,
            "prompt": DEFAULT_CAPTION_PROMPT,
            "answer": answer.text,
            "truth": clip.reference,
            "correct": None,
            "score": caption_f1(answer.text, clip.reference),
            **_costs(answer),
        }


def _method(cell: Cell) -> Pruner | PruningConfig:
    """What the engine is given: a config also says what stays in the KV cache."""
    return cell.config or pruner_of(None)


def _request(clip: EncodedClip, prompt: str, max_new_tokens: int, cell: Cell) -> Request:
    return Request(
        clip.video,
        prompt,
        max_new_tokens=max_new_tokens,
        video_key=str(clip.seed),
        seed=clip.seed,
        retention=cell.budget.retention,
    )


def _costs(answer: Answer) -> dict[str, float]:
    stats = answer.stats
    return {
        "retention_achieved": stats.retention_achieved,
        "flops_ratio": stats.flops_ratio,
        "kv_ratio": stats.kv_ratio,
        "prune_ms": stats.prune_ms,
        "prefill_ms": stats.prefill_ms,
    }
