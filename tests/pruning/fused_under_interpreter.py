"""Run by test_dpp_fused.py with TRITON_INTERPRET=1: the Triton kernel on the CPU, against the torch path."""

import torch
import torch.nn.functional as F

import pruning.dpp as dpp


def kernels(batch, n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(batch, n, d, generator=generator), dim=-1)
    weights = torch.rand(batch, n, generator=generator) + 0.1
    return (x @ x.transpose(1, 2)) * weights.unsqueeze(2) * weights.unsqueeze(1)


def both(kernel, *arguments):
    dpp.can_fuse = lambda kernel: False
    plain = dpp.greedy_map(kernel, *arguments)
    dpp.can_fuse = lambda kernel: True
    before = kernel.clone()
    fused = dpp.greedy_map(kernel, *arguments)
    assert torch.equal(kernel, before)
    return plain, fused


def check(*arguments):
    plain, fused = both(*arguments)
    assert torch.equal(plain, fused), arguments[1:]


for seed in range(2):
    check(kernels(4, 40, 64, seed), [37, 33, 11, 3], [40, 35, 11, 20])  # with padding
    check(kernels(3, 70, 96, seed), [66, 52, 60], [70, 65, 69])  # two panels, the kernel cut down between
    check(kernels(2, 20, 5, seed), [12, 3])  # the rank ends after 5 items, the rest goes by relevance
check(torch.zeros(1, 6, 6), [3])
check(torch.ones(2, 10, 10), [4, 0])  # equal items go by index
check(kernels(1, 1, 4, 0), [1])
check(torch.full((1, 3, 3), 1e-30), [2], None, None, 0.0)

wide = kernels(1, 9, 12, 1)
padded = torch.full((1, 11, 11), 1e6)
padded[:, :9, :9] = wide
check(padded, [5], [9])
print("same picks")
