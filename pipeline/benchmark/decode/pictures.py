"""Pictures that cost a codec what filmed ones do, each with its number written into it.

A detailed background pans by parts of a pixel, things cross it, grain lies over it, and every few seconds the scene
changes: at 1080p, H.264's keyframes are of about 90 KB and take about three times as long to decode as the mean frame.
The number lets the benchmark see which frame a decoder handed out, whatever it says of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BITS = 10  # a number is written as ten black or white stripes along the upper edge, lowest bit first
MAX_FRAMES = 1 << BITS

_BLACK, _WHITE = 16, 235  # luma of limited range
_SCENE_FRAMES = 120
_MARGIN = 96  # pixels by which the background is larger than a picture: how far it can pan
_GRAIN = 4  # levels
_THINGS = 10
# A larger picture is drawn at half its size: what is filmed at 2160p is rarely finer.
_FINEST = 1920 * 1200  # pixels


def draw_pictures(count: int, width: int, height: int) -> Iterator[np.ndarray]:
    """Pictures 0 to count - 1, uint8 planar YUV 4:2:0 [height * 3 / 2, width], as `from_ndarray` takes them.

    Sizes must be even and a number needs 2 * BITS pixels of width; at most MAX_FRAMES (ValueError).
    """
    if width % 2 or height % 2 or width < 2 * BITS or count > MAX_FRAMES:
        raise ValueError(f"cannot draw {count} pictures of {width} x {height}")
    scale = 2 if width * height > _FINEST and width % 4 == height % 4 == 0 else 1
    height, width = height // scale, width // scale
    rng = np.random.default_rng(0)
    field = _field(rng, height + _MARGIN, width + _MARGIN)
    grain = rng.integers(-_GRAIN, _GRAIN + 1, (height + _MARGIN, width + _MARGIN), dtype=np.int16)
    for number in range(count):
        planes = _picture(field, grain, number, width, height)
        if scale > 1:
            planes = [plane.repeat(scale, axis=0).repeat(scale, axis=1) for plane in planes]
        yield np.concatenate([plane.reshape(-1) for plane in planes]).reshape(-1, width * scale)


def read_number(picture: np.ndarray) -> int:
    """The number that a decoded picture, uint8 RGB [height, width, 3], shows."""
    height, width = picture.shape[:2]
    band = picture[: _band(height)].mean(axis=(0, 2))
    # Only the middle of a stripe: a lossy codec blurs its edges.
    levels = [band[round(a + (b - a) / 4) : round(b - (b - a) / 4)].mean() for a, b in _stripes(width)]
    return sum(1 << bit for bit, level in enumerate(levels) if level > 127)


def _picture(field: np.ndarray, grain: np.ndarray, number: int, width: int, height: int) -> list[np.ndarray]:
    """The planes Y, U and V of a picture, uint8."""
    scene, moment = divmod(number, _SCENE_FRAMES)
    # A scene is the same field seen another way round, bright or dark, so that a cut costs little to draw.
    seen = field[:: -1 if scene & 2 else 1, :: -1 if scene & 4 else 1]
    seen = 250 - seen if scene & 1 else seen
    turn = scene % 2
    luma = _window(seen, _swing(moment, 5 + 2 * turn), _swing(moment, 11 - 4 * turn), height, width)
    for thing in range(_THINGS):
        _cross(luma, seen, thing, moment)
    shift = number * 7 % _MARGIN, number * 13 % _MARGIN
    luma += grain[shift[0] : shift[0] + height, shift[1] : shift[1] + width]
    _write(luma, number)
    chroma = luma[::2, ::2] // 3 + 80
    planes = [luma.clip(_BLACK, _WHITE), chroma, 240 - chroma]
    for plane in planes[1:]:
        plane[: _band(height) // 2 + 1] = 128
    return [plane.astype(np.uint8) for plane in planes]


def _window(field: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """What of the field lies at a place in quarters of a pixel, which a codec has to interpolate as it does motion."""
    (top, below), (left, beside) = divmod(top, 4), divmod(left, 4)
    part = field[top : top + height + 1, left : left + width + 1]
    rows = part[:-1] * (4 - below) + part[1:] * below
    return (rows[:, :-1] * (4 - beside) + rows[:, 1:] * beside + 8) >> 4


def _field(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """int16 luma [height, width] between 30 and 220: detail at several scales."""
    total = np.zeros((height, width), np.float32)
    for side, weight in ((96, 1.0), (32, 0.6), (12, 0.1)):
        cells = rng.normal(size=(height // side + 2, width // side + 2)).astype(np.float32)
        total += weight * _spread(_spread(cells, side, 0)[:height], side, 1)[:, :width]
    low, high = np.percentile(total[::4, ::4], (1, 99))
    return (30 + 190 * ((total - low) / (high - low)).clip(0, 1)).astype(np.int16)


def _spread(cells: np.ndarray, side: int, axis: int) -> np.ndarray:
    """`cells` drawn `side` times as long along an axis, in straight lines from one value to the next."""
    place = np.arange((cells.shape[axis] - 1) * side) / side
    before = place.astype(np.int64)
    share = (place - before).astype(np.float32)
    share = share[:, None] if axis == 0 else share
    return np.take(cells, before, axis) * (1 - share) + np.take(cells, before + 1, axis) * share


def _swing(moment: int, speed: int) -> int:
    """A place from 0 to near the margin and back, in quarters of a pixel, `speed` of them a frame."""
    end = 4 * (_MARGIN - 2)
    place = moment * speed % (2 * end)
    return place if place <= end else 2 * end - place


def _cross(luma: np.ndarray, seen: np.ndarray, thing: int, moment: int) -> None:
    """One thing on its way through the picture: another part of the field, moving by itself, in another light."""
    height, width = luma.shape
    side = height // (5 + thing % 4)
    left = (moment * (3 + 2 * (thing % 5)) + thing * width // _THINGS) % (width - side)
    top = height // 5 + thing * (height - height // 5 - side) // _THINGS
    own = _window(seen, moment * (5 + thing) % (2 * _MARGIN), moment * 3 % (2 * _MARGIN), side, side)
    luma[top : top + side, left : left + side] = own * 3 // 4 + 10 * (thing % 4)


def _write(luma: np.ndarray, number: int) -> None:
    height, width = luma.shape
    for bit, (a, b) in enumerate(_stripes(width)):
        luma[: _band(height), a:b] = _WHITE if number >> bit & 1 else _BLACK


def _stripes(width: int) -> list[tuple[int, int]]:
    """First column of each stripe, and the one behind its last."""
    return [(width * bit // BITS, width * (bit + 1) // BITS) for bit in range(BITS)]


def _band(height: int) -> int:
    """Height of the stripes in pixels."""
    return max(8, height // 24)
