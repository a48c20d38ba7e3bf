"""Keys and values of sequences that were prefilled together and whose lengths differ by layer and by sequence."""

from __future__ import annotations

import copy
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
    own lengths; layers between two stages share them, which makes them one kind. All rows grow by one
    token at a time, together. `drop` takes a finished sequence out by moving the last row into its
    place.
    """

    def __init__(
        self,
        shape: DecoderShape,
        lengths: Sequence[Sequence[int]],
        rooms: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """`lengths[b][l]` entries of sequence b stay in layer l after prefill, `rooms[b]` more may follow."""
        self.rows = len(lengths)
        self._capacities = _capacities(lengths, rooms)
        # Zeros, not empty: masked slots are multiplied by weight 0, which a stray NaN would survive.
        self._keys, self._values = (
            [
                torch.zeros(self.rows, shape.kv_heads, slots, shape.head_size, dtype=dtype, device=device)
                for slots in self._capacities
            ]
            for _ in range(2)
        )
        self.shorten(lengths)

    @property
    def bytes(self) -> int:
        """Memory that the buffers take, finished rows included."""
        return sum(buffer.nbytes for buffer in (*self._keys, *self._values))

    def shorten(self, lengths: Sequence[Sequence[int]]) -> None:
        """Say how many entries were really stored at prefill, where a plan was revised below its announced lengths.

        To be called before the first `advance`; shape and meaning of `lengths` as at construction.
        """
        by_layer = list(zip(self._capacities, zip(*lengths, strict=True), strict=True))
        kinds = list(dict.fromkeys(by_layer))
        self._kind_of_layer = [kinds.index(layer) for layer in by_layer]
        self._slots_of_kind = [slots for slots, _ in kinds]
        self._lengths = [list(of_rows) for _, of_rows in kinds]  # after prefill, by kind and row
        self._added = 0  # tokens that every row has grown by since
        self._indexed: int | None = None  # `_added` when `_index` last ran; None: rows have moved since

    def write(self, layer: int, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store a sequence's prefill, [n, KV heads, head size] each, n being the announced length or less."""
        self._keys[layer][row, :, : keys.shape[0]] = keys.transpose(0, 1)
        self._values[layer][row, :, : values.shape[0]] = values.transpose(0, 1)

    def advance(self) -> None:
        """Make room for one more token of every row, in every layer."""
        self._added += 1

    def retreat(self) -> None:
        """Undo the last `advance`: the step that needed it failed."""
        self._added -= 1

    def append(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Store one token a row, [B, KV heads, head size] each, in the room that `advance` made.

        Returns all keys and values, [B, KV heads, n, head size], and what to add to attention scores:
        [B, 1, 1, n], minus infinity where a row is shorter than n, or None where none is.
        """
        kind = self._kind_of_layer[layer]
        if self._indexed != self._added:
            self._index()
        for buffer, new in ((self._keys[layer], keys), (self._values[layer], values)):
            entries = buffer.view(-1, buffer.shape[-1])
            entries.index_copy_(0, self._newest_entries[kind], new.reshape(-1, buffer.shape[-1]))
        end = self._longest[kind] + self._added
        mask = self._masks[kind]
        return (
            self._keys[layer][: self.rows, :, :end],
            self._values[layer][: self.rows, :, :end],
            None if mask is None else mask[..., :end],
        )

    def buffers(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All of a layer's keys and values, [rows, KV heads, slots, head size] each, slots beyond lengths included."""
        return self._keys[layer][: self.rows], self._values[layer][: self.rows]

    def lengths(self, layer: int) -> list[int]:
        """Entries of each row in `layer`, those that `advance` made room for included."""
        return [length + self._added for length in self._lengths[self._kind_of_layer[layer]]]

    def entries(self, layer: int, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A sequence's keys and values in `layer`, [KV heads, n, head size] each."""
        end = self._lengths[self._kind_of_layer[layer]][row] + self._added
        return self._keys[layer][row, :, :end], self._values[layer][row, :, :end]

    def drop(self, row: int) -> None:
        """Take a sequence out; the last one moves into its row."""
        last = self.rows - 1
        if row != last:
            for layer, kind in enumerate(self._kind_of_layer):
                end = self._lengths[kind][last] + self._added
                for buffer in (self._keys[layer], self._values[layer]):
                    buffer[row, :, :end] = buffer[last, :, :end]
            for lengths in self._lengths:
                lengths[row] = lengths[last]
        for lengths in self._lengths:
            lengths.pop()
        self.rows = last
        self._indexed = None

    def halves(self) -> tuple[KVCache, KVCache]:
        """The first and the second half of at least two rows, as caches over the same memory."""
        middle = self.rows // 2
        return self._part(0, middle, middle), self._part(middle, self.rows, None)

    def _part(self, start: int, end: int, end_of_memory: int | None) -> KVCache:
        """Rows `start` to `end` as a cache of their own that moves rows within its memory."""
        part = copy.copy(self)
        part.rows = end - start
        memory = slice(start, end_of_memory)
        part._keys, part._values = ([buffer[memory] for buffer in all_] for all_ in (self._keys, self._values))
        part._lengths = [lengths[start:end] for lengths in self._lengths]
        part._indexed = None
        return part

    def _index(self) -> None:
        """Where each row's newest entry goes, and what its attention may see.

        `_newest_slots` [kinds, B] are places in a mask [B, 1, 1, slots] seen as a vector, `_newest_entries`
        [kinds, B · KV heads] rows of a layer's buffers seen as [entries, head size]. From one token to
        the next all of them grow by one.
        """
        if self._indexed is not None and self._indexed == self._added - 1:
            self._newest_slots += 1
            self._newest_entries += 1
            for mask, slots in zip(self._masks, self._newest_slots, strict=True):
                if mask is not None:
                    mask.view(-1).index_fill_(0, slots, 0.0)
        else:
            self._index_anew()
        self._indexed = self._added

    def _index_anew(self) -> None:
        some = self._keys[0]
        device, kv_heads = some.device, some.shape[1]
        newest = torch.tensor(self._lengths, dtype=torch.int64, device=device) + (self._added - 1)  # [kinds, B]
        slots = torch.tensor(self._slots_of_kind, dtype=torch.int64, device=device)[:, None]
        self._newest_slots = newest + torch.arange(self.rows, device=device) * slots
        heads = torch.arange(self.rows * kv_heads, device=device)
        self._newest_entries = newest.repeat_interleave(kv_heads, dim=1) + heads * slots
        self._longest = [max(lengths) for lengths in self._lengths]
        self._masks: list[torch.Tensor | None] = []
        for kind, lengths in enumerate(self._lengths):
            mask = None
            if min(lengths) != max(lengths):
                is_beyond = torch.arange(self._slots_of_kind[kind], device=device) > newest[kind, :, None]
                mask = torch.zeros(is_beyond.shape, dtype=some.dtype, device=device)
                mask = mask.masked_fill_(is_beyond, float("-inf"))[:, None, None]
            self._masks.append(mask)
