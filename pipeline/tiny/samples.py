"""Training samples for the language model: clips as kept visual tokens, and many questions about each in one sequence.

A sample is laid out as [prefix | kept video tokens | newline | branch | branch | ...]. A branch is one question with
its answer, or the caption; it sees the video and itself, never another branch, and all branches start at the same
position, just as if each had been asked alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from pipeline.prompts import with_options
from pipeline.tiny.features import CELLS, COLOUR, COLOUR_INDEX, SHAPE, SHAPE_INDEX, code_matrix, scene_features
from pipeline.tiny.language import CAPTION_PROMPTS, appearances, caption, lettered, sample_questions, vary
from pipeline.tiny.model import MAX_TRAINED_FRAMES
from pipeline.tiny.pool import Pool
from pipeline.tiny.world import (
    FRAME_SIZES,
    MAX_OBJECTS,
    MOTIONS,
    SLOTS,
    Scene,
    make_scene,
    object_counts,
    scene_count,
    split_slots,
)

TEXT_LENGTH = 256
FOCUS_TOKENS = 96
DENSE = {"motion": len(MOTIONS) + 1, "objects": MAX_OBJECTS + 1, "scene": 4, "rank": MAX_OBJECTS + 1}
IGNORE = -100
QUESTIONS_PER_CLIP = 14
LETTERED = 0.25  # share of plain questions that training asks with options, so that finding the letter is learnt


@dataclass
class Batch:
    """B samples with K kept video tokens each.

    tokens [B, K, 128] float32 and index [B, K] (place among the N = frames x 36 original tokens); dense [B, K, 4]
    labels of DENSE, IGNORE where undefined; text, target [B, L] ids (target is the next id where it is to be learnt,
    else IGNORE), weight [B, L], branch [B, L] (1.. or 0 for padding), offset [B, L] position inside the branch.
    `frames` is T. `kinds` names the branch kinds for scoring.
    """

    tokens: torch.Tensor
    index: torch.Tensor
    dense: torch.Tensor
    text: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor
    branch: torch.Tensor
    offset: torch.Tensor
    frames: int
    kinds: list[list[str]]

    def to(self, device: str) -> Batch:
        """The same batch on a device."""
        moved = {
            f.name: v.to(device) if isinstance(v := getattr(self, f.name), torch.Tensor) else v for f in fields(self)
        }
        return Batch(**moved)


class Speller:
    """Turns prompts and answers into ids, in the checkpoint's chat format."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Remembers what it has spelled: the texts repeat."""
        self._tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}
        self.prefix = self._ids("<|im_start|>user\n")
        self._middle = self._ids("<|im_end|>\n<|im_start|>assistant\n")
        self._end = self._ids("<|im_end|>")

    def _ids(self, text: str) -> list[int]:
        if text not in self._cache:
            if len(self._cache) > 200_000:
                self._cache.clear()
            self._cache[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._cache[text]

    def branch(self, prompt: str, answer: str) -> tuple[list[int], int]:
        """Ids of `\\n prompt ... answer <|im_end|>` and how many of them come before the answer."""
        asked = [*self._ids("\n" + prompt), *self._middle]
        return [*asked, *self._ids(answer), *self._end], len(asked)


SceneTokens = tuple[list[Scene], np.ndarray, np.ndarray]  # scenes, tokens [T, 36, 128], owner [T, 36]


def drawn_clip(rng: np.random.Generator, frames: int) -> SceneTokens:
    """A new clip whose tokens are the code of the truth, with noise: no picture is drawn."""
    parts = split_slots(rng, frames, scene_count(rng, frames)) if frames >= 3 else [frames]
    taken: set[tuple[str, str]] = set()
    scenes = [make_scene(rng, n, k, taken) for n, k in zip(parts, object_counts(rng, len(parts)), strict=True)]
    width, height = FRAME_SIZES[int(rng.integers(0, len(FRAME_SIZES)))]
    found = [scene_features(s, np.arange(s.slots) + rng.uniform(-0.2, 0.2), width / height) for s in scenes]
    features = np.concatenate([f for f, _ in found])
    tokens = features @ _MATRIX
    tokens += rng.normal(0, rng.uniform(0.05, 0.3), tokens.shape).astype(np.float32)
    return scenes, tokens, _clip_owners(scenes, [o for _, o in found])


_MATRIX = code_matrix().numpy()


def _clip_owners(scenes: list[Scene], owners: list[np.ndarray]) -> np.ndarray:
    """Object numbers counted through the clip instead of through each scene."""
    before, out = 0, []
    for scene, owner in zip(scenes, owners, strict=True):
        out.append(np.where(owner >= 0, owner + before, -1))
        before += len(scene.objects)
    return np.concatenate(out)


def _owners(scene: Scene, features: np.ndarray) -> np.ndarray:
    """Which object of the scene each token shows, read off its features: [S, 36] int8, -1 for none."""
    owner = np.full(features.shape[:2], -1, np.int8)
    for index, thing in enumerate(scene.objects):
        colour = features[..., COLOUR.start + COLOUR_INDEX[thing.colour]] > 0
        shape = features[..., SHAPE.start + SHAPE_INDEX[thing.shape]] > 0
        owner[colour & shape] = index
    return owner


class PoolClips:
    """Clips composed of rendered scenes, as the trained vision tower reads them; forwards or backwards."""

    def __init__(self, pool: Pool, tokens: np.ndarray) -> None:
        """`tokens` [F, 36, 128]: the tower's own output for the pool's frames."""
        self._pool, self._tokens = pool, tokens
        self._by_length: dict[int, list[int]] = {}
        for number, scene in enumerate(pool.scenes):
            self._by_length.setdefault(scene.slots, []).append(number)

    def __call__(self, rng: np.random.Generator, frames: int) -> SceneTokens:
        """A clip of `frames` frames."""
        while True:
            numbers = self._choose(rng, split_slots(rng, frames, scene_count(rng, frames)))
            if numbers:
                return self._compose(rng, numbers)

    def _choose(self, rng: np.random.Generator, lengths: list[int]) -> list[int]:
        """Scenes of these lengths that share no object and are not too many together; empty if none were found."""
        chosen: list[int] = []
        taken: set[tuple[str, str]] = set()
        for length in lengths:
            candidates = self._by_length.get(length, [])
            for _ in range(30 if candidates else 0):
                number = int(rng.choice(candidates))
                pairs = {(o.colour, o.shape) for o in self._pool.scenes[number].objects}
                if not pairs & taken and len(taken) + len(pairs) <= MAX_OBJECTS:
                    chosen.append(number)
                    taken |= pairs
                    break
            else:
                return []
        return chosen

    def _compose(self, rng: np.random.Generator, numbers: list[int]) -> SceneTokens:
        scenes: list[Scene] = []
        tokens, owners = [], []
        for number in numbers:
            scene = self._pool.scenes[number]
            rows = slice(self._pool.starts[number], self._pool.starts[number] + scene.slots)
            step = -1 if rng.random() < 0.5 else 1
            scenes.append(scene if step == 1 else scene.reversed())
            tokens.append(self._tokens[rows][::step].astype(np.float32))
            owners.append(_owners(scene, self._pool.features[rows])[::step])
        return scenes, np.concatenate(tokens), _clip_owners(scenes, owners)


def dense_labels(scenes: list[Scene], owners: np.ndarray) -> np.ndarray:
    """What each token of the language model should know by then: [T, 36, 4] int64, columns as in DENSE."""
    out = np.full((*owners.shape, 4), IGNORE, np.int64)
    items = appearances(scenes)
    rank = {id(a.thing): i + 1 for i, a in enumerate(items)}
    first = np.array(sorted(a.first for a in items))
    start, number = 0, 0
    for index, scene in enumerate(scenes):
        for slot in range(scene.slots):
            out[start + slot, :, 1] = np.searchsorted(first, start + slot, side="right")
            out[start + slot, :, 2] = index
        for thing in scene.objects:
            for slot in range(thing.first, thing.last + 1):
                mine = owners[start + slot] == number
                (ax, ay), (bx, by) = thing.position(thing.first), thing.position(slot)
                gone = max(abs(bx - ax), abs(by - ay))
                if thing.first == thing.last or slot == thing.first:
                    motion = IGNORE
                elif gone < 0.03:
                    motion = MOTIONS.index("still")
                else:
                    motion = MOTIONS.index(thing.motion)
                out[start + slot, mine, 0] = motion
                out[start + slot, mine, 3] = rank[id(thing)]
            number += 1
        start += scene.slots
    return out


@dataclass(frozen=True)
class Mix:
    """What kind of batches to make: the share of focused ones, and the range of kept shares in the others."""

    focus: float = 0.0
    low: float = 0.08
    high: float = 1.0
    real: float = 0.0


def choose_tokens(rng: np.random.Generator, owners: np.ndarray, count: int, focus: bool) -> np.ndarray:
    """Which tokens stay: [count] ascending. At random; `focus` takes object tokens first (early training only)."""
    flat = owners.reshape(-1)
    if not focus:
        return np.sort(rng.permutation(len(flat))[:count])
    shown = rng.permutation(np.flatnonzero(flat >= 0))[: count - 8]
    rest = rng.permutation(np.setdiff1d(np.arange(len(flat)), shown))[: count - len(shown)]
    return np.sort(np.concatenate([shown, rest]))


class Samples(IterableDataset):
    """An endless stream of batches; a pure function of (seed, batch number), so that training can be resumed."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        mix: Callable[[], Mix],
        batch: int,
        seed: int,
        pool: PoolClips | None = None,
    ) -> None:
        """`mix` is asked before every batch; `pool` serves the share `mix.real` of them."""
        self._speller, self._mix, self._batch, self._seed, self._pool = Speller(tokenizer), mix, batch, seed, pool

    def __iter__(self) -> Iterator[Batch]:
        """Batches, for ever."""
        worker = get_worker_info()
        lane, lanes = (worker.id, worker.num_workers) if worker else (0, 1)
        number = lane
        while True:
            yield self.make(np.random.default_rng([self._seed, number]), self._mix())
            number += lanes

    def make(self, rng: np.random.Generator, mix: Mix, frames: int | None = None, kept: float | None = None) -> Batch:
        """One batch. Frame count and kept share are the same for all its samples, which spares padding."""
        if frames is None:
            frames = SLOTS if rng.random() < 0.6 else int(rng.integers(3, MAX_TRAINED_FRAMES + 1))
        focus = kept is None and rng.random() < mix.focus
        if kept is None:
            kept = float(np.exp(rng.uniform(np.log(mix.low), np.log(mix.high))))
        total = frames * CELLS
        count = min(total, FOCUS_TOKENS) if focus else max(4, round(total * kept))
        real = self._pool is not None and rng.random() < mix.real
        rows = []
        for _ in range(self._batch):
            scenes, tokens, owners = (
                self._pool(rng, frames) if real and self._pool is not None else drawn_clip(rng, frames)
            )
            chosen = choose_tokens(rng, owners, count, focus)
            dense = dense_labels(scenes, owners).reshape(total, -1)[chosen]
            rows.append((tokens.reshape(total, -1)[chosen], chosen, dense, *self._text(rng, scenes)))
        stacked = [torch.from_numpy(np.stack([row[i] for row in rows])) for i in range(8)]
        return Batch(*stacked, frames=frames, kinds=[row[8] for row in rows])

    def _text(self, rng: np.random.Generator, scenes: list[Scene]) -> tuple[np.ndarray, ...]:
        text = np.zeros(TEXT_LENGTH, np.int64)
        target = np.full(TEXT_LENGTH, IGNORE, np.int64)
        weight = np.zeros(TEXT_LENGTH, np.float32)
        branch = np.zeros(TEXT_LENGTH, np.int64)
        offset = np.zeros(TEXT_LENGTH, np.int64)
        prompt = CAPTION_PROMPTS[int(rng.integers(0, len(CAPTION_PROMPTS)))]
        asked = [("caption", prompt, caption(scenes))]
        for q in sample_questions(scenes, rng, QUESTIONS_PER_CLIP):
            q = lettered(q, rng) if rng.random() < LETTERED else q
            kind = f"{q.kind} lettered" if q.options else q.kind
            asked.append((kind, with_options(vary(q.text, rng), q.options), q.answer))
        at, kinds = 0, []
        for kind, prompt, answer in asked:
            ids, before = self._speller.branch(prompt, answer)
            end = at + len(ids) - 1  # the last id is only ever a target
            if end > TEXT_LENGTH:
                continue
            kinds.append(kind)
            text[at:end] = ids[:-1]
            target[at + before - 1 : end] = ids[before:]
            weight[at + before - 1 : end] = 0.35 if kind == "caption" else 1.0
            weight[end - 1] = 0.1
            branch[at:end] = len(kinds)
            offset[at:end] = np.arange(end - at)
            at = end
        return text, target, weight, branch, offset, kinds
