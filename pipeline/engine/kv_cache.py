"""Keys and values of a batch of sequences whose lengths differ by layer and by sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning.cost import DecoderShape


def cache_bytes(shape: DecoderShape, lengths: Sequence[Sequence[int]], rooms: Sequence[int], itemsize: int) -> int:
    """Size of the cache that `KVCache` would allocate for these sequences."""
    slots = len(lengths) * sum(_capacities(lengths, rooms))
    return 2 * slots * shape.kv_heads * shape.head_size * itemsize


def _capacities(lengths: Sequence[Sequence[int]], rooms: Sequence[int]) -> list[int]:
    """Slots a sequence in each layer: what the longest one needs."""
    return [
        max(length + room for length, room in zip(layer, rooms, strict=True)) for layer in zip(*lengths, strict=True)
    ]


class KVCache:
    """Buffers [B, KV heads, slots, head size] a layer, allocated once at the size that is known at admission.

    Rows are sequences. A pruned sequence holds fewer entries in later layers, so each layer has its
    own lengths; layers between two stages share them. `drop` takes a finished sequence out by moving
    the last row into its place.
    """

    def __init__(
        self,
        shape: DecoderShape,
        lengths: Sequence[Sequence[int]],
        rooms: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`lengths[b][l]` entries of sequence b enter layer l at prefill, `rooms[b]` more may follow."""
        self.rows = len(lengths)
        capacities = _capacities(lengths, rooms)
        # Zeros, not empty: masked slots are multiplied by weight 0, which a stray NaN would survive.
        self._keys, self._values = (
            [
                torch.zeros(self.rows, shape.kv_heads, slots, shape.head_size, dtype=dtype, device=device)
                for slots in capacities
            ]
            for _ in range(2)
        )
        self._row_index = torch.arange(self.rows, device=device)
        self.shorten(lengths)

    def shorten(self, lengths: Sequence[Sequence[int]]) -> None:
        """Say how many entries really entered at prefill, where a plan was revised below its announced lengths.

        To be called before the first `advance`; shape and meaning of `lengths` as at construction.
        """
        device = self._row_index.device
        by_layer = [tuple(layer) for layer in zip(*lengths, strict=True)]
        distinct = list(dict.fromkeys(by_layer))
        self._class_of_layer = [distinct.index(layer) for layer in by_layer]
        self._lengths = [list(layer) for layer in distinct]  # host copy: sizes of views without a device sync
        self._slots = [torch.tensor(layer, dtype=torch.int64, device=device) for layer in distinct]
        self._masks: list[torch.Tensor | None] = [None] * len(distinct)

    def write(self, layer: int, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store a sequence's prefill, [n, KV heads, head size] each, n being the announced length or less."""
        self._keys[layer][row, :, : keys.shape[0]] = keys.transpose(0, 1)
        self._values[layer][row, :, : values.shape[0]] = values.transpose(0, 1)

    def advance(self) -> None:
        """Make room for one more token of every sequence, in every layer, and mask what is beyond."""
        for kind, lengths in enumerate(self._lengths):
            slots = self._slots[kind][: self.rows]
            longest = max(lengths) + 1
            is_ragged = min(lengths) != max(lengths)
            steps = torch.arange(longest, device=slots.device)
            self._masks[kind] = (steps <= slots[:, None])[:, None, None] if is_ragged else None
            self._lengths[kind] = [length + 1 for length in lengths]
            slots += 1

    def append(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Store one token a sequence, [B, KV heads, head size] each, in the room that `advance` made.

        Returns all keys and values, [B, KV heads, n, head size], and the mask [B, 1, 1, n] or None.
        """
        kind = self._class_of_layer[layer]
        rows, slots = self._row_index[: self.rows], self._slots[kind][: self.rows] - 1
        self._keys[layer][rows, :, slots] = keys
        self._values[layer][rows, :, slots] = values
        end = max(self._lengths[kind])
        return (
            self._keys[layer][: self.rows, :, :end],
            self._values[layer][: self.rows, :, :end],
            self._masks[kind],
        )

    def entries(self, layer: int, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A sequence's keys and values in `layer`, [KV heads, n, head size] each."""
        end = self._lengths[self._class_of_layer[layer]][row]
        return self._keys[layer][row, :, :end], self._values[layer][row, :, :end]

    def drop(self, row: int) -> None:
        """Take a sequence out; the last one moves into its row."""
        last = self.rows - 1
        if row != last:
            for layer, kind in enumerate(self._class_of_layer):
                end = self._lengths[kind][last]
                for buffer in (self._keys[layer], self._values[layer]):
                    buffer[row, :, :end] = buffer[last, :, :end]
            for lengths, slots in zip(self._lengths, self._slots, strict=True):
                lengths[row] = lengths[last]
                slots[row] = slots[last]
        for lengths in self._lengths:
            lengths.pop()
        self.rows = last
