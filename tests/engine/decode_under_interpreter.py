"""Run by test_decode_attention_triton.py with TRITON_INTERPRET=1: the Triton kernels on the CPU, against SDPA."""

import torch
import torch.nn.functional as F

from pipeline.engine.decode_attention_triton import ragged_decode_attention


def rows_of(lengths, spare, kv_heads, head_size, dtype, generator):
    """Caches of one row each, of as many slots as the row's tokens and `spare`; what is not cached yet is NaN."""
    rows = []
    for length, room in zip(lengths, spare, strict=True):
        cache = torch.randn(2, kv_heads, length + room, head_size, generator=generator, dtype=torch.float32)
        cache[:, :, max(0, length - 1) :] = float("nan")
        rows.append(cache.to(dtype))
    return rows


def check(lengths, spare, heads, kv_heads, head_size, dtype, splits, tolerance, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = rows_of(lengths, spare, kv_heads, head_size, dtype, generator)
    before = [row.clone() for row in rows]
    count = len(lengths)
    query = torch.randn(count, heads, head_size, generator=generator).to(dtype)
    key, value = torch.randn(2, count, kv_heads, head_size, generator=generator).to(dtype)
    pointers = ([row[kind].data_ptr() if row[kind].numel() else 0 for row in rows] for kind in (0, 1))
    slots = [row.shape[2] for row in rows]
    places = (torch.tensor(numbers) for numbers in (*pointers, slots, lengths))
    attended = ragged_decode_attention(query, key, value, *places, splits=splits)
    assert attended.shape == (count, heads * head_size)
    assert attended.dtype == dtype
    for b, length in enumerate(lengths):
        if length > 0:
            before[b][:, :, length - 1] = torch.stack((key[b], value[b]))
        assert torch.equal(rows[b].nan_to_num(7.0), before[b].nan_to_num(7.0)), "the new token, and nothing else"
        if length == 0:
            assert not attended[b].any()
            continue
        cached_keys, cached_values = before[b][:, None, :, :length].float()
        expected = F.scaled_dot_product_attention(
            query[b][None, :, None].float(), cached_keys, cached_values, enable_gqa=True
        ).flatten()
        error = (attended[b].float() - expected).abs().max()
        assert error < tolerance, (length, splits, error)


RAGGED = [1, 17, 1000, 0, 2, 65, 64, 129]
SPARE = [0, 3, 10, 0, 1, 0, 7, 2]
check(RAGGED, SPARE, 4, 2, 16, torch.float32, 8, 1e-5)
check(RAGGED, SPARE, 4, 2, 16, torch.float32, 1, 1e-5)
check([300, 1, 0], [1, 0, 4], 7, 1, 64, torch.float16, 4, 2e-3)
check([1, 1], [1, 0], 14, 2, 32, torch.bfloat16, 2, 1e-2)  # the interpreter cannot multiply tiles of bfloat16
check([90, 5], [2, 2], 6, 2, 20, torch.float32, 4, 1e-5)  # a head size between powers of two
check([70], [0], 40, 2, 8, torch.float32, 2, 1e-5)  # small heads, more of them to a KV head than the least tile has
print("same attention")
