"""One decode step as a CUDA graph for each of a few batch sizes, over static buffers.

A decode step is some twenty small kernels a layer, which Python may start more slowly than the device
runs them. A graph starts all at once. It repeats the same kernels on the same addresses, so what
changes from step to step lies in buffers that stay: token ids, positions, and the address, room and
length of each sequence's cache row. The batch is padded to the next captured size with rows of length
0, which attention skips.

Sampling stays outside: it depends on the requests' parameters, and its answer is what the host waits
for. `torch.compile` of the step would fuse the norms, rotations and residual sums between the matrix
products, which counts at small batches only, and costs a minute or more at every start: not done.

Memory beside the caches: the largest batch's activations once, and each size's logits, in all 175 rows
of float32 (106 MB for a vocabulary of 152,000).

Unmeasured for want of a GPU: the capture itself, and what it gains. Tested without one: what fills
the buffers, the choice of sizes, and the way back to launching kernel by kernel.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import torch

from pipeline.engine.decode_attention_triton import ragged_decode_attention
from pipeline.engine.upload import upload

# A captured batch is at most twice as large as the rows in it; large ones, where padding costs most, less.
SIZES = (1, 2, 4, 8, *range(16, 65, 16))

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, query [B, heads, head size], new key, new value [B, KV heads, head size]) -> [B, heads · head size]."""

Step = Callable[[torch.Tensor, torch.Tensor, Attend], torch.Tensor]
"""(token ids [B], positions [B], attention over the cache) -> logits float32 [B, vocabulary], without a sync."""

Capture = Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]
"""What records a function without arguments, and returns one that repeats it into the same result."""


class Slab(Protocol):
    """A cache whose rows take part in decoding."""

    rows: int

    def buffers(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `layer`, contiguous [≥ rows, KV heads, slots, head size] each; the first rows are live."""

    def lengths(self, layer: int) -> Sequence[int]:
        """Entries of each live row in `layer`, known to the host."""


class RaggedBatch:
    """The static buffers of one batch size: where each row's cache lies, how long it is, its token and position."""

    def __init__(self, layers: int, size: int, device: torch.device) -> None:
        """All rows are padding."""
        self.size = size
        self._device = device
        # One block, so that all of it is filled by one copy.
        self._block = torch.zeros(4 * layers + 3, size, dtype=torch.int64, device=device)
        *of_layers, rest = self._block.split((layers, layers, layers, layers, 3))
        self.key_pointers, self.value_pointers, self.slots, self.lengths = of_layers
        self.tokens, self.positions, self.is_live = rest

    def place(self, places: torch.Tensor, positions: Sequence[int]) -> None:
        """Let the first rows be live: at `places` [4, layers, rows], whose next tokens stand at `positions`."""
        rows = len(positions)
        rest = torch.tensor([[0] * rows, [*positions], [1] * rows])  # tokens, positions, is_live
        self._block.zero_()
        self._block[:, :rows] = upload(torch.cat((places.flatten(0, 1), rest)), self._device)

    def feed(self, tokens: Sequence[int]) -> None:
        """Set the token ids of the live rows."""
        self.tokens[: len(tokens)] = upload(tokens, self._device)

    def run(self, step: Step) -> torch.Tensor:
        """One step: the caches grow by the fed tokens. Returns logits float32 [size, vocabulary]."""
        self.lengths += self.is_live
        logits = step(self.tokens, self.positions, self.attend)
        self.positions += self.is_live
        return logits

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Store the new keys and values and attend to them and all before."""
        return ragged_decode_attention(
            query,
            key,
            value,
            self.key_pointers[layer],
            self.value_pointers[layer],
            self.slots[layer],
            self.lengths[layer],
        )


def cache_addresses(slab: Slab, layers: int) -> torch.Tensor:
    """Where all rows of a slab lie, live or not, for as long as it exists: int64 [3, layers, rows] on the host.

    The three are the addresses of keys and of values, and the slots of a row.
    """
    first, _ = slab.buffers(0)
    row = torch.arange(first.shape[0])
    places = torch.empty(3, layers, len(row), dtype=torch.int64)
    for layer in range(layers):
        for kind, buffer in enumerate(slab.buffers(layer)):
            places[kind, layer] = buffer.data_ptr() + row * (buffer.stride(0) * buffer.element_size())
            places[2, layer] = buffer.shape[2]
    return places


class DecodeGraph:
    """Repeats a decode step, captured once for each padded batch size; larger batches are launched kernel by kernel."""

    def __init__(self, step: Step, layers: int, device: torch.device, capture: Capture | None = None) -> None:
        """`capture` records a step; by default into CUDA graphs of one memory pool."""
        self._step = step
        self._layers = layers
        self._device = device
        self._capture = CudaCapture(device) if capture is None else capture
        self._can_capture = True
        self._captured: dict[int, tuple[RaggedBatch, Callable[[], torch.Tensor]]] = {}
        self._addresses: WeakKeyDictionary[Slab, torch.Tensor] = WeakKeyDictionary()
        self._rows = 0

    @torch.inference_mode()
    def place(self, slabs: Sequence[Slab], positions: Sequence[int]) -> None:
        """Decode the rows of `slabs` from now on, in order, their next tokens at `positions`.

        To be called whenever a row came, left or moved, and after a step that failed.
        """
        self._rows = len(positions)
        self._batch, self._replay = self._prepare(self._rows)
        self._batch.place(torch.cat([self._places(slab) for slab in slabs], dim=-1), positions)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Append one token to each row. Returns the next logits float32 [B, vocabulary], good until the next call."""
        self._batch.feed(tokens)
        return self._replay()[: self._rows]

    def _places(self, slab: Slab) -> torch.Tensor:
        """Addresses, slots and lengths of a slab's live rows, int64 [4, layers, rows] on the host."""
        if slab not in self._addresses:
            self._addresses[slab] = cache_addresses(slab, self._layers)
        lengths = torch.tensor([slab.lengths(layer) for layer in range(self._layers)], dtype=torch.int64)
        return torch.cat((self._addresses[slab][..., : slab.rows], lengths[None]))

    def _prepare(self, rows: int) -> tuple[RaggedBatch, Callable[[], torch.Tensor]]:
        """Buffers for so many rows, and the step over them: captured if that can be."""
        size = padded_size(rows)
        if self._can_capture and size is not None:
            try:
                if size not in self._captured:
                    batch = RaggedBatch(self._layers, size, self._device)
                    # All rows are padding now: a step to warm up on writes into no cache.
                    self._captured[size] = batch, self._capture(lambda: batch.run(self._step))
                return self._captured[size]
            except Exception as error:  # whatever cannot be captured can still be launched
                warnings.warn(f"decoding runs without CUDA graphs, capturing one fails: {error}", stacklevel=3)
                self._can_capture = False
        batch = RaggedBatch(self._layers, rows, self._device)
        return batch, lambda: batch.run(self._step)


def padded_size(rows: int) -> int | None:
    """The smallest captured size that holds `rows`, None beyond the largest."""
    return next((size for size in SIZES if size >= rows), None)


class CudaCapture:
    """Records functions as CUDA graphs whose intermediate results share memory; each keeps its own final one."""

    def __init__(self, device: torch.device) -> None:
        """The device that the functions work on."""
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: tuple[int, int] | None = None

    def __call__(self, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Run `function` twice, so that kernels are compiled and libraries have their workspaces, then record it."""
        with torch.cuda.device(self._device):
            # Memory is shared only among what was recorded on one stream.
            stream = self._stream = self._stream or torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    function()
            graph = torch.cuda.CUDAGraph()
            # Other threads of the process may go on using the device, to load frames for example.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                result = function()
            torch.cuda.current_stream().wait_stream(stream)
        self._pool = graph.pool()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay
