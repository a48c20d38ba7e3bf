"""A procedural video world with known truth: scenes, cuts, and small objects that move, appear and vanish.

Time is counted in *slots*: a clip has `SLOTS` of them, and slot k is what a reader sees that samples `SLOTS` frames
uniformly. Objects appear and vanish, and scenes are cut, half-way between slots, so that the truth of a clip is exact
at that sampling. Most objects are about one pooled visual token large and many live for one to three slots only: what
a pruner drops carelessly is gone.

Everything is a function of a seed. Train, validation and test seeds never meet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

COLOURS = {
    "red": (220, 30, 30),
    "green": (40, 190, 50),
    "blue": (40, 70, 235),
    "yellow": (240, 220, 40),
    "white": (248, 248, 248),
    "purple": (170, 40, 200),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 0.16, "large": 0.24}  # diameter as a share of sqrt(width x height)
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = ("left", "right", "up", "down", "still", "flash")
SLOTS = 16
MAX_SCENES = 4
MAX_OBJECTS = 5
MIN_SCENE_SLOTS = 3
FRAME_SIZES = ((640, 360), (480, 360), (480, 270), (360, 360), (320, 180))

TRAIN_SEEDS = range(0, 1_000_000)
VALIDATION_SEEDS = range(1_000_000, 2_000_000)
TEST_SEEDS = range(2_000_000, 3_000_000)
SEED_RANGES = {"train": TRAIN_SEEDS, "validation": VALIDATION_SEEDS, "test": TEST_SEEDS}


@dataclass(frozen=True)
class WorldObject:
    """One object of a scene. Positions are shares of the frame (x right, y down), slots count from the scene's start.

    It is visible in slots `first`..`last` (inclusive) and goes from `start` to `end` between the slots `moves_from` and
    `moves_to`, standing still before and after.
    """

    colour: str
    shape: str
    size: str
    first: int
    last: int
    start: tuple[float, float]
    end: tuple[float, float]
    moves_from: float
    moves_to: float

    @property
    def motion(self) -> str:
        """One of MOTIONS; an object seen in a single slot has no visible motion: it flashes."""
        if self.first == self.last:
            return "flash"
        dx, dy = self.end[0] - self.start[0], self.end[1] - self.start[1]
        if max(abs(dx), abs(dy)) < 0.02:
            return "still"
        if abs(dx) > abs(dy):
            return "right" if dx > 0 else "left"
        return "down" if dy > 0 else "up"

    def position(self, slot: float) -> tuple[float, float]:
        """Centre at a (fractional) slot of the scene."""
        span = max(self.moves_to - self.moves_from, 1e-6)
        share = min(max((slot - self.moves_from) / span, 0.0), 1.0)
        return (
            self.start[0] + share * (self.end[0] - self.start[0]),
            self.start[1] + share * (self.end[1] - self.start[1]),
        )

    def visible(self, slot: float) -> bool:
        """Whether the object is in the picture at a (fractional) slot of the scene."""
        return self.first - 0.5 <= slot < self.last + 0.5


@dataclass(frozen=True)
class Scene:
    """A static textured background and its objects, `slots` long. `texture` seeds the background."""

    slots: int
    texture: int
    objects: tuple[WorldObject, ...]

    def reversed(self) -> Scene:
        """The same scene played backwards; directions and orders turn with it."""
        last = self.slots - 1
        turned = tuple(
            replace(
                o,
                first=last - o.last,
                last=last - o.first,
                start=o.end,
                end=o.start,
                moves_from=last - o.moves_to,
                moves_to=last - o.moves_from,
            )
            for o in self.objects
        )
        return replace(self, objects=turned)


@dataclass(frozen=True)
class Clip:
    """A sequence of scenes with the properties of its video file."""

    seed: int
    scenes: tuple[Scene, ...]
    duration_s: float
    fps: int
    width: int
    height: int

    @property
    def slots(self) -> int:
        """Total length in slots."""
        return sum(scene.slots for scene in self.scenes)

    def locate(self, slot: float) -> tuple[Scene, float]:
        """The scene at a (fractional) slot of the clip, and the slot inside it."""
        start = 0
        for scene in self.scenes[:-1]:
            if slot < start + scene.slots - 0.5:
                return scene, slot - start
            start += scene.slots
        return self.scenes[-1], slot - start


def split_slots(rng: np.random.Generator, total: int, parts: int) -> list[int]:
    """`total` slots in `parts` random scenes of at least MIN_SCENE_SLOTS."""
    spare = total - parts * MIN_SCENE_SLOTS
    cuts = np.sort(rng.integers(0, spare + 1, parts - 1))
    gaps = np.diff(np.concatenate([[0], cuts, [spare]]))
    return [MIN_SCENE_SLOTS + int(g) for g in gaps]


def scene_count(rng: np.random.Generator, total: int) -> int:
    """How many scenes a clip of `total` slots gets."""
    most = max(1, min(MAX_SCENES, total // MIN_SCENE_SLOTS))
    weights = np.array([0.25, 0.35, 0.25, 0.15])[:most]
    return 1 + int(rng.choice(most, p=weights / weights.sum()))


def make_object(rng: np.random.Generator, slots: int, pair: tuple[str, str]) -> WorldObject:
    """A random object for a scene of `slots`: half of them are brief (one to three slots)."""
    if rng.random() < 0.55:
        length = min(slots, int(rng.choice([1, 2, 3], p=[0.3, 0.4, 0.3])))
    else:
        length = int(rng.integers(min(4, slots), slots + 1))
    first = int(rng.integers(0, slots - length + 1))
    last = first + length - 1
    direction = str(rng.choice(list(DIRECTIONS)))
    moving = length > 1 and rng.random() < 0.75
    low, high = 0.12, 0.88
    x, y = rng.uniform(low, high, 2)
    start, end = (float(x), float(y)), (float(x), float(y))
    moves_from, moves_to = float(first), float(last)
    if moving:
        sx, sy = DIRECTIONS[direction]
        reach = float(rng.uniform(0.36, 0.7))
        near = rng.uniform(low, high - reach)
        far = near + reach
        if sx:
            start, end = ((near, y), (far, y)) if sx > 0 else ((far, y), (near, y))
        else:
            start, end = ((x, near), (x, far)) if sy > 0 else ((x, far), (x, near))
        start, end = (float(start[0]), float(start[1])), (float(end[0]), float(end[1]))
        if length > 3 and rng.random() < 0.4:  # stops on the way, or starts late
            pause = float(rng.uniform(0.2, 0.5)) * (length - 1)
            moves_from, moves_to = (first, last - pause) if rng.random() < 0.5 else (first + pause, last)
    size = "small" if rng.random() < 0.7 else "large"
    return WorldObject(pair[0], pair[1], size, first, last, start, end, float(moves_from), float(moves_to))


def apart(one: WorldObject, other: WorldObject) -> bool:
    """Whether two objects never come so near that one could hide the other."""
    both = range(max(one.first, other.first), min(one.last, other.last) + 1)
    for slot in both:
        (ax, ay), (bx, by) = one.position(slot), other.position(slot)
        if max(abs(ax - bx), abs(ay - by)) < 0.3:
            return False
    return True


def make_scene(rng: np.random.Generator, slots: int, count: int, taken: set[tuple[str, str]]) -> Scene:
    """A random scene with up to `count` objects, none of a (colour, shape) pair in `taken`, which it extends."""
    objects: list[WorldObject] = []
    for _ in range(count):
        for _ in range(20):
            pair = (str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)))
            if pair in taken:
                continue
            candidate = make_object(rng, slots, pair)
            if all(apart(candidate, other) for other in objects):
                objects.append(candidate)
                taken.add(pair)
                break
    return Scene(slots, int(rng.integers(0, 2**31)), tuple(objects))


def object_counts(rng: np.random.Generator, scenes: int) -> list[int]:
    """Objects per scene: one to three each, at most MAX_OBJECTS in the clip."""
    counts = [1] * scenes
    wanted = int(rng.integers(scenes, MAX_OBJECTS + 1))
    while sum(counts) < wanted:
        index = int(rng.integers(0, scenes))
        if counts[index] < 3:
            counts[index] += 1
        elif min(counts) == 3:
            break
    return counts


def make_clip(seed: int, slots: int = SLOTS) -> Clip:
    """The clip of a seed. Durations run from 4 to 60 s (log-uniform), sizes up to 640 x 360."""
    rng = np.random.default_rng([seed, 20])
    parts = split_slots(rng, slots, scene_count(rng, slots))
    taken: set[tuple[str, str]] = set()
    scenes = tuple(make_scene(rng, n, k, taken) for n, k in zip(parts, object_counts(rng, len(parts)), strict=True))
    duration = float(np.exp(rng.uniform(np.log(4.0), np.log(60.0))))
    fps = int(rng.choice([8, 10, 12] if duration > 20 else [10, 12, 15, 24]))
    width, height = FRAME_SIZES[int(rng.integers(0, len(FRAME_SIZES)))]
    return Clip(seed, scenes, duration, fps, width, height)
