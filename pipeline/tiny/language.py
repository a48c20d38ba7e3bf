"""What is said about a clip: a reference caption, questions with one-word answers, and how captions are scored.

Everything is derived from the truth of the scenes (`pipeline.tiny.world`), in plain English with a small vocabulary.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from pipeline.tiny.world import COLOURS, DIRECTIONS, SHAPES, Scene, WorldObject

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
ORDINALS = ("first", "second", "third", "fourth")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
LETTERS = "ABCD"
MOTION_PHRASES = {
    "left": "moves left",
    "right": "moves right",
    "up": "moves up",
    "down": "moves down",
    "still": "stays still",
    "flash": "flashes",
}
CAPTION_PROMPTS = (
    "Describe the video.",
    "Describe the video",
    "describe the video",
    "Describe this video.",
    "What happens in the video?",
    "what happens in the video",
    "Caption the video.",
)


@dataclass(frozen=True)
class Question:
    """A question about a clip. `answer` is one word, or the letter of the right one of `options`."""

    kind: str
    text: str
    answer: str
    options: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Appearance:
    """One object of a clip with the scene it is in (from 0) and the slots of the clip where it is visible."""

    thing: WorldObject
    scene: int
    first: int
    last: int

    @property
    def name(self) -> str:
        """For example `red circle`."""
        return f"{self.thing.colour} {self.thing.shape}"


def appearances(scenes: Sequence[Scene]) -> list[Appearance]:
    """All objects in the order a caption names them: by first slot, then colour, then shape."""
    found, start = [], 0
    for number, scene in enumerate(scenes):
        found += [Appearance(o, number, start + o.first, start + o.last) for o in scene.objects]
        start += scene.slots
    colours = list(COLOURS)
    return sorted(found, key=lambda a: (a.first, colours.index(a.thing.colour), SHAPES.index(a.thing.shape)))


def caption(scenes: Sequence[Scene]) -> str:
    """One sentence a scene: `a red circle moves left, a blue square flashes. then a green star stays still.`"""
    parts: list[list[str]] = [[] for _ in scenes]
    for item in appearances(scenes):
        parts[item.scene].append(f"a {item.name} {MOTION_PHRASES[item.thing.motion]}")
    return " then ".join((", ".join(part) or "nothing happens") + "." for part in parts)


def caption_facts(text: str) -> Counter[tuple[str, ...]]:
    """The facts a caption states: objects with colour and shape, their motion, their scene, and their order."""
    facts: Counter[tuple[str, ...]] = Counter()
    names: list[str] = []
    pattern = re.compile(rf"an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?: ({'|'.join(MOTION_PHRASES.values())}))?")
    for number, sentence in enumerate(re.split(r"\bthen\b", text.lower())):
        for colour, shape, motion in pattern.findall(sentence):
            name = f"{colour} {shape}"
            facts["colour", colour] += 1
            facts["shape", shape] += 1
            facts["object", name] += 1
            facts["motion", name, motion] += 1
            facts["scene", name, str(number)] += 1
            names.append(name)
    for earlier, later in pairwise(names):
        facts["order", earlier, later] += 1
    return facts


def caption_f1(prediction: str, reference: str) -> float:
    """F1 over the facts of two captions; facts that the reference lacks count against the prediction."""
    said, true = caption_facts(prediction), caption_facts(reference)
    if not said or not true:
        return float(said == true)
    hits = sum((said & true).values())
    return 2 * hits / (sum(said.values()) + sum(true.values()))


def _pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    return str(items[int(rng.integers(0, len(items)))])


def _unique(items: list[Appearance], key: str) -> list[Appearance]:
    counts = Counter(getattr(a.thing, key) for a in items)
    return [a for a in items if counts[getattr(a.thing, key)] == 1]


def _absent_name(items: list[Appearance], rng: np.random.Generator) -> str:
    names = {a.name for a in items}
    while True:
        name = f"{_pick(rng, list(COLOURS))} {_pick(rng, SHAPES)}"
        if name not in names:
            return name


def _ordered_pairs(items: list[Appearance]) -> list[tuple[Appearance, Appearance]]:
    return [(a, b) for a in items for b in items if a.first + 1 < b.first]


def all_questions(scenes: Sequence[Scene], rng: np.random.Generator) -> list[Question]:
    """Every question this clip can be asked, in random order; no two are about the same fact in the same words."""
    items = appearances(scenes)
    found: list[Question] = []

    def ask(kind: str, text: str, answer: str, options: Sequence[str] = ()) -> None:
        found.append(Question(kind, text, answer, tuple(options)))

    ask("scenes", "how many scenes are in the video", NUMBERS[len(scenes)])
    ask("objects", "how many objects are in the video", NUMBERS[len(items)])
    for a in _unique(items, "shape"):
        ask("colour", f"what color is the {a.thing.shape}", a.thing.colour)
    for a in _unique(items, "colour"):
        ask("shape", f"what shape is the {a.thing.colour} object", a.thing.shape)
    for a in items:
        if a.thing.motion != "flash":
            ask("direction", f"which way does the {a.name} move", a.thing.motion)
        ask("size", f"what size is the {a.name}", a.thing.size)
        if len(scenes) > 1:
            ask("scene", f"in which scene is the {a.name}", ORDINALS[a.scene])
        ask("presence", f"is there a {a.name}", "yes")
    for _ in range(max(1, len(items))):
        ask("presence", f"is there a {_absent_name(items, rng)}", "no")
    for shape in SHAPES:
        ask("count", f"how many {PLURALS[shape]} are in the video", NUMBERS[sum(a.thing.shape == shape for a in items)])
    for colour in COLOURS:
        number = sum(a.thing.colour == colour for a in items)
        if number or rng.random() < 0.15:
            ask("count", f"how many {colour} objects are in the video", NUMBERS[number])
    for direction in DIRECTIONS:
        movers = [a for a in items if a.thing.motion == direction]
        if len(movers) == 1:
            ask("mover", f"what color is the object that moves {direction}", movers[0].thing.colour)
    firsts = [a.first for a in items]
    if len(items) > 1 and firsts.count(min(firsts)) == 1:
        ask("first", "what color is the object that appears first", items[0].thing.colour)
    if len(items) > 1 and firsts.count(max(firsts)) == 1:
        ask("last", "what color is the object that appears last", items[-1].thing.colour)
    for a, b in _ordered_pairs(items):
        early = rng.random() < 0.5
        one, two = (a, b) if early else (b, a)
        ask("order", f"does the {one.name} appear before the {two.name}", "yes" if early else "no")
    found += _lettered(items, rng)
    return [found[i] for i in rng.permutation(len(found))]


def _lettered(items: list[Appearance], rng: np.random.Generator) -> list[Question]:
    found = []

    def choose(kind: str, text: str, right: str, wrong: Sequence[str]) -> None:
        options = [right, *wrong]
        order = rng.permutation(len(options))
        found.append(
            Question(kind, text, LETTERS[int(np.flatnonzero(order == 0)[0])], tuple(options[i] for i in order))
        )

    for a in items:
        wrong = [_absent_name(items, rng)]
        while len(wrong) < 2:
            name = _absent_name(items, rng)
            if name not in wrong:
                wrong.append(name)
        choose("which", "which object is in the video", a.name, wrong)
        if a.thing.motion != "flash":
            others = [m for m in ("left", "right", "up", "down", "still") if m != a.thing.motion]
            picked = [others[int(i)] for i in rng.permutation(len(others))[:3]]
            choose("direction", f"which way does the {a.name} move", a.thing.motion, picked)
    for a, b in _ordered_pairs(items):
        choose("order", "which object appears first", a.name, [b.name])
    return found


_DOMAINS: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "mover": tuple(COLOURS),
    "first": tuple(COLOURS),
    "last": tuple(COLOURS),
    "shape": SHAPES,
    "direction": (*DIRECTIONS, "still"),
    "scene": ORDINALS,
    "scenes": NUMBERS[1:5],
    "objects": NUMBERS[1:6],
    "count": NUMBERS[:4],
}


def lettered(question: Question, rng: np.random.Generator) -> Question:
    """The same question with two to four lettered options, where its answers come from a list; else as it is."""
    wrong = [word for word in _DOMAINS.get(question.kind, ()) if word != question.answer]
    if question.options or not wrong:
        return question
    count = int(rng.integers(1, 4))
    options = [question.answer, *(wrong[int(i)] for i in rng.permutation(len(wrong))[:count])]
    order = rng.permutation(len(options))
    letter = LETTERS[int(np.flatnonzero(order == 0)[0])]
    return Question(question.kind, question.text, letter, tuple(options[int(i)] for i in order))


def sample_questions(scenes: Sequence[Scene], rng: np.random.Generator, count: int) -> list[Question]:
    """`count` different questions, kinds taken in turn so that none crowds out the others."""
    pool = all_questions(scenes, rng)
    chosen: list[Question] = []
    while pool and len(chosen) < count:
        seen: set[str] = set()
        for question in list(pool):
            if question.kind in seen or len(chosen) == count:
                continue
            seen.add(question.kind)
            chosen.append(question)
            pool.remove(question)
    return chosen


def vary(text: str, rng: np.random.Generator) -> str:
    """A question as different people would type it: with or without capital and question mark."""
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    return text + "?" if rng.random() < 0.5 else text
