"""Packed causal attention against each sequence by itself, and what the CUDA kernel would be given."""

from functools import partial

import pytest
import torch

from pipeline.engine import attention_varlen
from pipeline.engine.attention_varlen import causal_options, varlen_attention

LENGTHS = [((5,), (5,)), ((3, 1, 40), (3, 1, 40)), ((2, 1, 7), (9, 12, 7)), ((4, 4), (4, 90))]


def packed(query_lengths, key_lengths, heads=6, kv_heads=2, head_size=8):
    generator = torch.Generator().manual_seed(len(query_lengths))
    query = torch.randn(sum(query_lengths), heads, head_size, generator=generator)
    key, value = torch.randn(2, sum(key_lengths), kv_heads, head_size, generator=generator)
    return query, key, value


def reference(query, key, value, query_lengths, key_lengths):
    """Softmax over what a mask of positions leaves, head by head."""
    outputs, group = [], query.shape[1] // key.shape[1]
    for q, k, v in zip(query.split(query_lengths), key.split(key_lengths), value.split(key_lengths), strict=True):
        places = torch.arange(k.shape[0] - q.shape[0], k.shape[0])
        hidden = torch.arange(k.shape[0]) > places[:, None]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outputs)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_each_sequence_attends_to_itself_and_what_came_before(lengths, kv_heads):
    tensors = packed(*lengths, kv_heads=kv_heads)
    attended = varlen_attention(*tensors, *lengths)
    assert attended.shape == tensors[0].shape
    torch.testing.assert_close(attended, reference(*tensors, *map(list, lengths)))


def test_lists_and_tuples_of_lengths_are_the_same():
    tensors = packed((2, 3), (4, 3))
    assert torch.equal(varlen_attention(*tensors, [2, 3], [4, 3]), varlen_attention(*tensors, (2, 3), (4, 3)))


@pytest.fixture
def kernel(monkeypatch):
    """Take the kernel's path on the CPU, with a stand-in of torch 2.12's signature that computes from its arguments."""
    calls = []

    def varlen_attn(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
    ):
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert window_size == (-1, 0)
        assert enable_gqa
        assert scale is None
        query_lengths, key_lengths = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
        assert (max_q, max_k) == (max(query_lengths), max(key_lengths))
        assert (cu_seq_q[0], cu_seq_q[-1], cu_seq_k[-1]) == (0, query.shape[0], key.shape[0])
        calls.append((cu_seq_q, cu_seq_k))
        return reference(query, key, value, query_lengths, key_lengths)

    adapted = partial(varlen_attn, **causal_options(varlen_attn))
    monkeypatch.setattr(attention_varlen, "varlen_kernel", lambda: adapted)
    monkeypatch.setattr(attention_varlen, "has_varlen_kernel", lambda *_: True)
    return calls


@pytest.mark.parametrize("lengths", LENGTHS)
def test_one_kernel_gets_all_sequences(kernel, lengths):
    tensors = packed(*lengths)
    torch.testing.assert_close(varlen_attention(*tensors, *lengths), reference(*tensors, *map(list, lengths)))
    assert len(kernel) == 1


def test_layers_of_equal_lengths_share_the_cumulated_ones(kernel):
    for lengths in ((2, 3), (2, 3), (2, 1)):
        varlen_attention(*packed(lengths, (4, 3)), list(lengths), [4, 3])
    (first, keys), (second, _), (other, others) = kernel
    assert first is second
    assert first is not other
    assert keys is others


def test_the_adapter_follows_the_signature():
    def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None): ...

    def torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)): ...

    assert causal_options(torch_2_10) == {"is_causal": True}
    assert causal_options(torch_2_11) == {"window_size": (-1, 0)}


def test_this_torch_has_the_function_and_its_causal_window():
    kernel = attention_varlen.varlen_kernel()
    assert kernel.keywords["window_size"] == (-1, 0)


def test_the_cpu_has_no_kernel():
    assert not attention_varlen.has_varlen_kernel(torch.device("cpu"), torch.bfloat16, 64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("lengths", LENGTHS)
def test_on_a_gpu_the_kernel_gives_the_same(lengths):
    tensors = packed(*lengths, head_size=64)
    half = [tensor.to("cuda", torch.bfloat16) for tensor in tensors]
    assert attention_varlen.has_varlen_kernel(half[0].device, torch.bfloat16, 64)
    attended = varlen_attention(*half, *lengths)
    expected = reference(*(tensor.bfloat16().float() for tensor in tensors), *map(list, lengths))
    torch.testing.assert_close(attended.float().cpu(), expected, atol=2e-2, rtol=2e-2)
