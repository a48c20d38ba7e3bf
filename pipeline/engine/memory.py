"""What fits: budgets from a model's shapes and the free memory, and the predicted peak of a request."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from pipeline.engine.host_memory import free_host_bytes, peak_resident_bytes, reset_peak_resident, resident_bytes
from pruning import StagePlan
from pruning.cost import DecoderShape
from pruning.vectors import numbers_at_once

if TYPE_CHECKING:
    from pipeline.engine.decoder import Decoder

# Shares of the free memory that may be used: a GPU is the engine's own, main memory is also the decoders' of video.
_USABLE = {"cuda": 0.9, "cpu": 0.5}
_KV_SHARE, _PREFILL_SHARE, _MLP_SHARE, _VISION_SHARE = 0.5, 0.25, 0.0625, 0.125  # of what may be used

# More at once makes nothing faster; on the CPU fewer patches and rows of an MLP are, which stay in its cache.
_MOST_PREFILL_TOKENS = 16_384
_MOST_PATCHES_CUDA, _MOST_PATCHES_CPU = 32_768, 1_152
_MOST_MLP_ROWS_CUDA, _MOST_MLP_ROWS_CPU = 8_192, 1_024
_LEAST_MLP_ROWS = 256

# Numbers that a vision tower of today's models (1152 to 1280 wide) and its projector hold for each patch at their
# largest, its pixels included; measured without these: SigLIP-so400m 11,000, Qwen2-VL's 18,000, however many layers.
_NUMBERS_PER_PATCH = 21_000

# Selection works on blocks of up to so many tokens, a bounded number of kernels at a time, of which the
# greedy choice holds a copy and what it cuts that down to.
_BLOCK = 1_024
_KERNEL_NUMBERS_CUDA, _KERNEL_NUMBERS_CPU = 2**28, 2**24
_KERNEL_COPIES = 3

# What allocators lose to rounding and to holes that fit nothing.
_SLACK = 1.1


@dataclass(frozen=True)
class MemoryPlan:
    """Budgets of one engine, in bytes unless named otherwise; the weights are loaded and count no more.

    `kv_bytes` is for the KV caches of all sequences that run; `prefill_tokens` how many tokens (text
    included) may enter layer 0 in one prefill pack; `patches` how many the vision tower takes in one
    call; `mlp_rows` how many rows an MLP takes at once. Each of the three counts is at least 1: one
    request alone is always tried, `check_fits` says whether it can work.
    """

    shape: DecoderShape
    vocabulary: int
    itemsize: int  # bytes of a number in activations and cache
    device: torch.device
    free: int
    kv_bytes: int
    prefill_tokens: int
    patches: int
    mlp_rows: int

    @classmethod
    def make(
        cls, shape: DecoderShape, vocabulary: int, dtype: torch.dtype, device: torch.device, free: int | None = None
    ) -> Self:
        """Divide the device's `free` bytes (None: asked now) among cache, activations and vision tower."""
        free = free_bytes(device) if free is None else free
        usable = free * _USABLE[device.type]
        itemsize = dtype.itemsize
        token = itemsize * _numbers_per_token(shape)
        row = itemsize * _numbers_per_mlp_row(shape)
        patch = itemsize * _NUMBERS_PER_PATCH
        return cls(
            shape=shape,
            vocabulary=vocabulary,
            itemsize=itemsize,
            device=device,
            free=free,
            kv_bytes=int(usable * _KV_SHARE),
            prefill_tokens=max(1, min(_MOST_PREFILL_TOKENS, int(usable * _PREFILL_SHARE) // token)),
            patches=max(1, min(most_patches(device), int(usable * _VISION_SHARE) // patch)),
            mlp_rows=max(_LEAST_MLP_ROWS, min(most_mlp_rows(device), int(usable * _MLP_SHARE) // row)),
        )

    @classmethod
    def of(cls, decoder: Decoder, free: int | None = None) -> Self:
        """The plan for a loaded decoder on its device."""
        return cls.make(decoder.shape, decoder.vocabulary, decoder.dtype, decoder.device, free)

    def cache_bytes(self, cached_tokens: Sequence[int], max_new_tokens: int) -> int:
        """KV cache of one sequence by itself; `cached_tokens` are the entries of each layer after prefill."""
        slots = sum(cached_tokens) + len(cached_tokens) * max_new_tokens
        return 2 * slots * self.shape.kv_heads * self.shape.head_size * self.itemsize

    def sequence_peak_bytes(
        self, plan: StagePlan, text_tokens: int, max_new_tokens: int, kv_retention: float = 1.0
    ) -> int:
        """Predicted peak of one request by itself, beside the weights: the largest of its phases.

        Vision: the video's tokens and one call of the tower. Prefill, beside those tokens and the cache: at the input
        float32 pieces of the tokens and the merged rows; in a layer its activations. A pruning method
        that selects among more than 1,024 tokens at a time needs more.
        """
        numbers = plan.num_tokens * self.shape.hidden
        tokens = numbers * self.itemsize
        vision = tokens + self.patches * _NUMBERS_PER_PATCH * self.itemsize
        cached = [math.ceil(kv_retention * count) + text_tokens for count in plan.attention_tokens()]
        widened = 2 if self.itemsize == 4 else 3  # scaled, multiplied, and where the dtype is another a float32 copy
        pieces = 4 * widened * min(numbers, numbers_at_once(self.device)) + 12 * 8 * plan.num_tokens
        entering = (plan.counts[0] + text_tokens) * self.shape.hidden * self.itemsize
        layers = (
            self._layer_bytes(attention + text_tokens, mlp + text_tokens, is_selecting=mlp < attention)
            for attention, mlp in zip(plan.attention_tokens(), plan.mlp_tokens(), strict=True)
        )
        prefill = self.cache_bytes(cached, max_new_tokens) + tokens + max(pieces + 2 * entering, *layers)
        return int(_SLACK * max(vision, prefill)) + self.vocabulary * (self.itemsize + 4)

    def check_fits(
        self, name: str, plan: StagePlan, text_tokens: int, max_new_tokens: int, kv_retention: float = 1.0
    ) -> None:
        """Raise torch.OutOfMemoryError, in one line that starts with `name`, if one request alone cannot work."""
        peak = self.sequence_peak_bytes(plan, text_tokens, max_new_tokens, kv_retention)
        if peak > self.free:
            raise torch.OutOfMemoryError(
                f"{name}: {plan.num_tokens} video tokens need about {gibibytes(peak)} beside the model's weights, "
                f"the {self.device.type} has {gibibytes(self.free)} free"
            )

    def _layer_bytes(self, attention: int, mlp: int, is_selecting: bool) -> int:
        """Activations of one decoder layer at prefill, `attention` tokens before its stage and `mlp` after."""
        shape = self.shape
        in_attention = attention * _numbers_per_token(shape)
        in_mlp = mlp * (3 * shape.hidden + 2 * shape.head_size) + min(mlp, self.mlp_rows) * _numbers_per_mlp_row(shape)
        if not is_selecting:
            return self.itemsize * max(in_attention, in_mlp)
        held = _KERNEL_NUMBERS_CUDA if self.device.type == "cuda" else _KERNEL_NUMBERS_CPU
        kernels = _KERNEL_COPIES * min(attention * min(attention, _BLOCK), held)
        vectors = 2 * min(attention * shape.hidden, numbers_at_once(self.device))
        in_selection = self.itemsize * attention * _numbers_in_stage(shape) + 4 * (kernels + vectors)
        return max(self.itemsize * max(in_attention, in_mlp), in_selection)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, tied ones once, quantized ones at the size that they have."""
    return sum(_tensor_bytes(tensor) for tensor in (*module.parameters(), *module.buffers()))


def most_patches(device: torch.device) -> int:
    """Patches that a call of the vision tower takes where memory is plenty."""
    return _MOST_PATCHES_CUDA if device.type == "cuda" else _MOST_PATCHES_CPU


def most_mlp_rows(device: torch.device) -> int:
    """Rows that an MLP takes at once where memory is plenty."""
    return _MOST_MLP_ROWS_CUDA if device.type == "cuda" else _MOST_MLP_ROWS_CPU


def free_bytes(device: torch.device) -> int:
    """Bytes that tensors on a device may still take, what torch holds in reserve included."""
    if device.type != "cuda":
        return free_host_bytes()
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an operation failed for want of memory: another, smaller one may succeed."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch says it of main memory, and cuBLAS of its workspace, with a plain RuntimeError
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    )


def release(device: torch.device) -> None:
    """Give back what nothing uses any more, after an operation ran out of memory."""
    gc.collect()  # a traceback's frames hold tensors in cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()


class PeakMemory:
    """The most memory in use on a device since this object was made, weights included.

    On CUDA what torch has allocated; on the CPU the process's resident memory. Where the system does
    not let a process reset its high-water mark, that mark counts only if it rose, else what is in use
    when `peak_bytes` is called.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin to measure; an earlier object of the same device ends with that."""
        self._device = device
        self._mark = 0
        self._largest = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif not reset_peak_resident():
            self._mark = peak_resident_bytes() or 0

    def peak_bytes(self) -> int | None:
        """The peak so far; None where the system does not say."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak, now = peak_resident_bytes(), resident_bytes()
        if peak is None or now is None:
            return None
        self._largest = max(self._largest, peak if peak > self._mark else now)
        return self._largest


def gibibytes(size: int) -> str:
    """A size as error messages say it: "15.2 GiB"."""
    return f"{size / 2**30:.1f} GiB"


def _numbers_per_token(shape: DecoderShape) -> int:
    """Numbers that a layer's attention part holds for each token at prefill, at its largest.

    Residual stream, norm and its sum with the output; queries while they are rotated (themselves, turned,
    two products); keys, values; rotary tables.
    """
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    return 3 * shape.hidden + 4 * queries + 2 * keys + 2 * shape.head_size


def _numbers_in_stage(shape: DecoderShape) -> int:
    """Numbers held for each token while a stage chooses: two residual streams, queries, keys, values, tables."""
    return 2 * shape.hidden + 2 * (shape.heads + shape.kv_heads + 1) * shape.head_size


def _numbers_per_mlp_row(shape: DecoderShape) -> int:
    """Numbers that an MLP holds for each row: gate and up, the row normed and its output."""
    return 2 * shape.ffn + 2 * shape.hidden


def _tensor_bytes(tensor: torch.Tensor) -> int:
    """A tensor's bytes; one that is made of others, as torchao's are, has theirs."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    return sum(_tensor_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
