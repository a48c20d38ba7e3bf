"""Item ids by the million: 16 bytes each in one array, where Python texts would take five times as much.

In files and between stages an item_id is a text of 32 hexadecimal digits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

ID_BYTES = 16
ID_ARRAY = np.dtype(f"S{ID_BYTES}")  # compares like the texts; equal length, so stripped zeros at the end say nothing


def item_ids(identities: np.ndarray) -> np.ndarray:
    """Name the rows of a manifest: each identity with the number of identical rows before it, hashed.

    ID_ARRAY [rows] in manifest order, both ways. So no row is ever taken for another one.
    """
    named = bytearray()
    digits = identities.tobytes().hex()
    for row, earlier in enumerate(_earlier(identities).tolist()):
        identity = digits[2 * ID_BYTES * row : 2 * ID_BYTES * (row + 1)]
        named += hashlib.sha256(f"{identity}/{earlier}".encode()).digest()[:ID_BYTES]
    return np.frombuffer(named, ID_ARRAY)


def _earlier(values: np.ndarray) -> np.ndarray:
    """For each value the number of equal ones before it: int64 [rows]."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    places = np.arange(len(values))
    starts = np.ones(len(values), bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    counted = np.empty(len(values), np.int64)
    counted[order] = places - np.maximum.accumulate(np.where(starts, places, 0))
    return counted


def as_texts(ids: np.ndarray) -> list[str]:
    """ID_ARRAY [rows] as texts."""
    digits = ids.tobytes().hex()
    return [digits[place : place + 2 * ID_BYTES] for place in range(0, len(digits), 2 * ID_BYTES)]


def from_texts(item_ids: Iterable[str]) -> np.ndarray:
    """Texts of 32 hexadecimal digits as ID_ARRAY [rows]."""
    return np.frombuffer(bytes.fromhex("".join(item_ids)), ID_ARRAY)


class KnownItems:
    """A set of items, 16 bytes each."""

    def __init__(self, ids: np.ndarray) -> None:
        """Take ID_ARRAY [items], in any order; a writable array is sorted in place."""
        if ids.flags.writeable:
            ids.sort()
        else:
            ids = np.sort(ids)
        self._ids = ids

    def __len__(self) -> int:
        """How many there are."""
        return len(self._ids)

    def contains(self, ids: np.ndarray) -> np.ndarray:
        """Which of ID_ARRAY [rows] are in the set: bool [rows]."""
        if not len(self._ids):
            return np.zeros(len(ids), bool)
        places = np.searchsorted(self._ids, ids)
        return self._ids[np.minimum(places, len(self._ids) - 1)] == ids
