"""The training recipe: packed samples are what the model will meet, and a run can be interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

from pipeline.engine import Request, VideoLLM
from pipeline.tiny.features import CELLS
from pipeline.tiny.model import build_config, build_model, build_tokenizer
from pipeline.tiny.samples import IGNORE, Mix, Samples, Speller
from pipeline.tiny.train import corpus
from pipeline.tiny.train_language import LanguageTrainer, Recipe, random_drops, train_language
from pruning import PruningConfig


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(corpus()[:20000])


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionForConditionalGeneration:
    return build_model(build_config(tokenizer)).eval()


def test_words_are_single_tokens_and_any_text_survives(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer.encode("what color is the circle", add_special_tokens=False)) == 5
    for text in ("What color is the circle?", "Ünïcode ☃ zażółć\n\ttabs 123"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_packed_branch_gets_the_logits_it_would_get_alone(
    tokenizer: PreTrainedTokenizerFast, model: LlavaOnevisionForConditionalGeneration
) -> None:
    """Against transformers' own forward on one question, all tokens kept."""
    samples = Samples(tokenizer, Mix, batch=1, seed=3)
    batch = samples.make(np.random.default_rng(1), Mix(), frames=4, kept=1.0)
    prefix = Speller(tokenizer).prefix
    trainer = LanguageTrainer(model, prefix).eval()
    with torch.no_grad():
        packed, _, _ = trainer(batch, {})
        embed = model.get_input_embeddings()
        for branch in range(1, int(batch.branch.max()) + 1):
            mine = batch.branch[0] == branch
            video = torch.cat([batch.tokens[0], model.model.image_newline[None]])
            whole = torch.cat([embed(torch.tensor(prefix)), video, embed(batch.text[0][mine])])[None]
            alone = model(inputs_embeds=whole).logits[0, -int(mine.sum()) :]
            assert torch.allclose(packed[0][mine], alone, atol=1e-3)


def test_dropped_tokens_leave_only_the_kept_ones_in_reach(
    tokenizer: PreTrainedTokenizerFast, model: LlavaOnevisionForConditionalGeneration
) -> None:
    samples = Samples(tokenizer, Mix, batch=2, seed=3)
    batch = samples.make(np.random.default_rng(2), Mix(), frames=6, kept=0.5)
    trainer = LanguageTrainer(model, Speller(tokenizer).prefix).eval()
    generator = torch.Generator().manual_seed(0)
    drops: dict[int, torch.Tensor] = {}
    while not drops:
        drops = random_drops(batch, generator)
    with torch.no_grad():
        logits, hidden, alive = trainer(batch, drops)
    assert batch.index.shape[1] == 6 * CELLS // 2
    assert hidden.shape[1] == alive.shape[1] == drops[6].shape[1] < batch.index.shape[1]
    assert (alive.diff(dim=1) > 0).all()
    assert torch.isfinite(logits).all()


def test_targets_are_the_next_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = Samples(tokenizer, Mix, batch=4, seed=3).make(np.random.default_rng(5), Mix(focus=1.0))
    for row in range(4):
        learnt = torch.nonzero(batch.target[row] != IGNORE).flatten()
        for at in learnt.tolist():
            if batch.branch[row, at + 1 : at + 2].tolist() == [batch.branch[row, at].item()]:
                assert batch.target[row, at] == batch.text[row, at + 1]
    assert batch.kinds[0][0] == "caption"


def test_the_recipe_makes_a_checkpoint_that_the_engine_loads(tmp_path: Path) -> None:
    small = ["--pool-clips", "12", "--crowds", "64", "--vision-steps", "2", "--minutes", "0.02", "--batch", "2"]
    command = [sys.executable, "-m", "pipeline.tiny.train", "--folder", str(tmp_path), "--workers", "1", *small]
    subprocess.run(command, check=True, capture_output=True, timeout=500)
    report = json.loads((tmp_path / "training.json").read_text())
    assert 0 <= report["language"]["all questions"] <= 1
    assert 0 <= report["vision"]["colour"] <= 1
    llm = VideoLLM.load(tmp_path / "checkpoint", device="cpu")
    request = Request(np.zeros((4, 48, 64, 3), np.uint8), "what color is the circle", max_new_tokens=3)
    assert llm.answer([request], PruningConfig(retention=0.3))[0].stats.video_tokens == 4 * CELLS


def test_training_learns_resumes_and_saves(
    tokenizer: PreTrainedTokenizerFast, model: LlavaOnevisionForConditionalGeneration, tmp_path: Path
) -> None:
    saved = []
    recipe = Recipe(minutes=0.05, batch=4, workers=0)
    train_language(model, tokenizer, None, recipe, tmp_path, "cpu", lambda: saved.append(1))
    first = torch.load(tmp_path / "language.pt", weights_only=True)["state"]
    train_language(
        model, tokenizer, None, Recipe(minutes=0.1, batch=4, workers=0), tmp_path, "cpu", lambda: saved.append(1)
    )
    second = torch.load(tmp_path / "language.pt", weights_only=True)["state"]
    assert second["step"] > first["step"] > 0
    assert second["spent"] > first["spent"] >= 3.0
    assert len(saved) == 2
