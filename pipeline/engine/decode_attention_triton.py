"""One decode step's attention over KV caches that lie anywhere, as two Triton kernels: a batch, ragged in every way.

Each query attends to a cache row of its own, given by address, room and length, so rows of several
caches of different capacity share one launch. Keys are split among programs and their partial
softmaxes merged afterwards (flash-decoding: Dao et al. 2023; merging: Milakov & Gimelshein 2018,
online softmax). The query heads of one KV head are treated together, so that keys and values are
read once. Nothing here waits for the device or depends on lengths known to the host, so a CUDA graph
can hold it.

Checked under Triton's interpreter and compiled for GPUs of three generations; speed, and with it
the choice of tiles and splits, is unmeasured for want of a GPU.
"""

from __future__ import annotations

import math
import warnings
from functools import cache

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

_MAX_SPLITS = 64
_PROGRAMS_A_PROCESSOR = 4  # several hide each other's memory latency and even out unequal lengths
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@cache
def can_decode_ragged(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether `ragged_decode_attention` runs here; tries it once, since a machine may have no C compiler, say."""
    if triton is None or device.type != "cuda" or dtype not in _DTYPES:
        return False
    try:
        cached = torch.zeros(2, 1, 1, head_size, dtype=dtype, device=device)
        new = torch.ones(1, 1, head_size, dtype=dtype, device=device)
        keys, values = (torch.tensor([buffer.data_ptr()], device=device) for buffer in cached)
        one = torch.ones(1, dtype=torch.int64, device=device)
        attended = ragged_decode_attention(new, new, new, keys, values, one, one)
        return bool((attended == 1).all() & (cached == 1).all())
    except Exception as error:  # whatever Triton raises, attention cache by cache remains
        warnings.warn(f"decoding attends cache by cache, its Triton kernel fails here: {error}", stacklevel=2)
        return False


def ragged_decode_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_pointers: torch.Tensor,
    value_pointers: torch.Tensor,
    slots: torch.Tensor,
    lengths: torch.Tensor,
    splits: int | None = None,
) -> torch.Tensor:
    """Store each sequence's new token in its cache row and attend to all of the row's tokens.

    `query` is [B, heads, head size], `key` and `value` the new tokens' [B, KV heads, head size]. Row b
    of the cache lies at the addresses `key_pointers[b]` and `value_pointers[b]`, [KV heads, slots[b],
    head size] each, contiguous and of the query's dtype; `lengths[b]` counts its tokens, the new one
    included, and is at most `slots[b]`. These four are int64 [B] on the query's device. A row of length
    0 is padding: its pointers are not followed and its output is 0. `splits`, a power of two, divides
    each row's keys; by default so many that the device is full. Returns [B, heads · head size].
    """
    rows, heads, head_size = query.shape
    kv_heads = key.shape[1]
    if splits is None:
        splits = _num_splits(rows * kv_heads, _processors(query.device))
    # The programs' own results: normed by their own softmax, with its log-sum-exp to merge them by.
    partial = torch.empty(rows, splits, heads, head_size, dtype=torch.float32, device=query.device)
    log_sums = torch.empty(rows, splits, heads, dtype=torch.float32, device=query.device)
    output = torch.empty(rows, heads * head_size, dtype=query.dtype, device=query.device)
    width = max(16, triton.next_power_of_2(head_size))
    with torch.cuda.device_of(query):
        _attend[(rows, kv_heads, splits)](
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            key_pointers,
            value_pointers,
            slots,
            lengths,
            partial,
            log_sums,
            head_size**-0.5,
            GROUP=heads // kv_heads,
            HEAD_SIZE=head_size,
            PADDED_GROUP=max(16, triton.next_power_of_2(heads // kv_heads)),  # the least a matrix unit takes
            WIDTH=width,
            BLOCK=block_size(query.dtype, width),
            ALIGNMENT=math.gcd(16, head_size * query.element_size()),
            num_warps=4,
            num_stages=2,
            enable_fp_fusion=True,
        )
        sizes = {"HEAD_SIZE": head_size, "WIDTH": width, "SPLITS": splits}
        _merge[(rows, heads)](partial, log_sums, output, **sizes, num_warps=4, enable_fp_fusion=True)
    return output


def block_size(dtype: torch.dtype, width: int) -> int:
    """Keys of one tile: 16 KiB, so that two tiles of keys and values each fit any GPU's shared memory."""
    return max(16, min(128, 16 * 1024 // (width * dtype.itemsize)))


def _num_splits(programs: int, processors: int) -> int:
    """Parts of each row's keys, a power of two: those that give every processor several programs."""
    wanted = max(1, _PROGRAMS_A_PROCESSOR * processors // programs)
    return min(_MAX_SPLITS, 1 << (wanted.bit_length() - 1))


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


if triton is not None:

    @triton.jit
    def _attend(  # noqa: ANN202  # Triton reads the annotations of a kernel itself
        query,  # noqa: ANN001
        key,  # noqa: ANN001
        value,  # noqa: ANN001
        key_pointers,  # noqa: ANN001
        value_pointers,  # noqa: ANN001
        slots,  # noqa: ANN001
        lengths,  # noqa: ANN001
        partial,  # noqa: ANN001
        log_sums,  # noqa: ANN001
        scale,  # noqa: ANN001
        GROUP: tl.constexpr,
        HEAD_SIZE: tl.constexpr,
        PADDED_GROUP: tl.constexpr,
        WIDTH: tl.constexpr,
        BLOCK: tl.constexpr,
        ALIGNMENT: tl.constexpr,
    ):
        """A row's query heads of one KV head against one part of its keys; the new token belongs to part 0."""
        row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        kv_heads, splits = tl.num_programs(1), tl.num_programs(2)
        dtype = query.dtype.element_ty
        column = tl.arange(0, WIDTH)
        head = tl.arange(0, PADDED_GROUP)
        is_column = column < HEAD_SIZE
        is_entry = (head < GROUP)[:, None] & is_column[None, :]
        heads = (row * kv_heads + kv_head) * GROUP + head
        queries = tl.load(query + heads[:, None] * HEAD_SIZE + column[None, :], mask=is_entry, other=0.0)

        length = tl.load(lengths + row).to(tl.int32)
        past = length - 1
        start_of_head = kv_head * tl.load(slots + row) * HEAD_SIZE
        keys = tl.load(key_pointers + row).to(tl.pointer_type(dtype)) + start_of_head
        values = tl.load(value_pointers + row).to(tl.pointer_type(dtype)) + start_of_head
        # An address out of memory says nothing of its alignment, without which elements are read one by one.
        keys, values = tl.multiple_of(keys, ALIGNMENT), tl.multiple_of(values, ALIGNMENT)

        # The new token goes to the cache for the steps to come, and into this one from registers: no
        # program has to see what another has just stored.
        has_new = (split == 0) & (length > 0)
        new = (row * kv_heads + kv_head) * HEAD_SIZE + column
        new_key = tl.load(key + new, mask=is_column, other=0.0)
        new_value = tl.load(value + new, mask=is_column, other=0.0)
        is_stored = column < tl.where(has_new, HEAD_SIZE, 0)
        tl.store(keys + past * HEAD_SIZE + column, new_key, mask=is_stored)
        tl.store(values + past * HEAD_SIZE + column, new_value, mask=is_stored)
        score = tl.sum(queries.to(tl.float32) * new_key.to(tl.float32)[None, :], 1) * scale
        highest = tl.where(has_new, score, -float("inf"))
        total = tl.where(has_new, tl.full([PADDED_GROUP], 1.0, tl.float32), 0.0)
        summed = tl.where(has_new, tl.zeros([PADDED_GROUP, WIDTH], tl.float32) + new_value.to(tl.float32)[None, :], 0.0)

        share = tl.cdiv(tl.cdiv(past, BLOCK), splits) * BLOCK
        first = split * share
        for start in range(first, tl.minimum(first + share, past), BLOCK):
            place = start + tl.arange(0, BLOCK)
            is_past = place < past
            entries = place[:, None] * HEAD_SIZE + column[None, :]
            is_cached = is_past[:, None] & is_column[None, :]
            tile = tl.load(keys + entries, mask=is_cached, other=0.0)
            scores = tl.dot(queries, tl.trans(tile), input_precision="ieee") * scale
            scores = tl.where(is_past[None, :], scores, -float("inf"))
            higher = tl.maximum(highest, tl.max(scores, 1))
            fade = tl.exp(highest - higher)
            weights = tl.exp(scores - higher[:, None])
            tile = tl.load(values + entries, mask=is_cached, other=0.0)
            total = total * fade + tl.sum(weights, 1)
            summed = summed * fade[:, None] + tl.dot(weights.to(dtype), tile, input_precision="ieee")
            highest = higher

        result = (row * splits + split) * kv_heads * GROUP + kv_head * GROUP + head
        tl.store(log_sums + result, highest + tl.log(total), mask=head < GROUP)
        # A part without keys leaves its result unwritten: its log-sum-exp of −inf says so.
        has_any = (total > 0.0)[:, None]
        normed = summed / tl.where(has_any, total[:, None], 1.0)
        tl.store(partial + result[:, None] * HEAD_SIZE + column[None, :], normed, mask=is_entry & has_any)

    @triton.jit
    def _merge(  # noqa: ANN202
        partial,  # noqa: ANN001
        log_sums,  # noqa: ANN001
        output,  # noqa: ANN001
        HEAD_SIZE: tl.constexpr,
        WIDTH: tl.constexpr,
        SPLITS: tl.constexpr,
    ):
        """One head of one row: the parts' results, weighted by the mass of their softmaxes."""
        row, head = tl.program_id(0), tl.program_id(1)
        heads = tl.num_programs(1)
        column = tl.arange(0, WIDTH)
        is_column = column < HEAD_SIZE
        part = (row * SPLITS + tl.arange(0, SPLITS)) * heads + head
        log_sum = tl.load(log_sums + part)
        has_any = log_sum > -float("inf")
        weight = tl.where(has_any, tl.exp(log_sum - tl.max(log_sum, 0)), 0.0)
        parts = tl.load(
            partial + part[:, None] * HEAD_SIZE + column[None, :], mask=has_any[:, None] & is_column[None, :], other=0.0
        )
        total = tl.sum(weight, 0)
        merged = tl.sum(parts * weight[:, None], 0) / tl.where(total > 0.0, total, 1.0)
        tl.store(output + (row * heads + head) * HEAD_SIZE + column, merged, mask=is_column)
