"""The steps of one panel of greedy MAP as one Triton kernel: no launch and no memory pass between them.

Triton comes with CUDA builds of torch. Where it is missing, or cannot compile, `can_fuse` is False
and the torch path of `pruning.dpp` does the same arithmetic.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

MAX_ITEMS = 16384  # gains of one kernel that still fit the registers of one program


def can_fuse(kernel: torch.Tensor) -> bool:
    """True if `take_panel_fused` treats a kernel of this device, dtype and size here."""
    return kernel.is_cuda and kernel.dtype == torch.float32 and kernel.shape[2] <= MAX_ITEMS and _works(kernel.device)


@cache
def _works(device: torch.device) -> bool:
    """Try the kernel once on a device; a machine without a C compiler, say, cannot build it."""
    if triton is None:
        return False
    try:
        gains = torch.ones(1, 2, device=device)
        take_panel_fused(
            torch.eye(2, device=device).unsqueeze(0),
            gains,
            torch.ones(1, device=device),
            torch.ones(1, dtype=torch.int64, device=device),
            0,
            torch.zeros(1, 2, 2, device=device),
        )
        return bool(gains.isneginf().any())
    except Exception as error:  # whatever Triton raises, the torch path remains
        warnings.warn(f"greedy MAP runs unfused, its Triton kernel fails here: {error}", stacklevel=2)
        return False


def take_panel_fused(
    left: torch.Tensor,
    gains: torch.Tensor,
    stop: torch.Tensor,
    wanted: torch.Tensor,
    first: int,
    panel: torch.Tensor,
) -> None:
    """All steps of the panel that begins at step `first`, one program for each row of `gains` [b, n].

    `left` is [≥ b, n, n] float32 contiguous, `stop` and `wanted` [≥ b], `panel` [≥ b, steps, n] contiguous.
    Taken items get gain −inf, and `panel` the factors: zero where a row takes nothing.
    """
    batch, n = gains.shape
    width = triton.next_power_of_2(n)
    panel.zero_()
    _panel[(batch,)](
        left,
        gains,
        stop,
        wanted,
        panel,
        first,
        n,
        STEPS=panel.shape[1],
        WIDTH=width,
        LINES=max(1, min(16, 4096 // width)),
        num_warps=min(32, max(4, width // 128)),
        enable_fp_fusion=True,
    )


if triton is not None:

    @triton.jit
    def _panel(  # noqa: ANN202  # Triton reads the annotations of a kernel itself
        left,  # noqa: ANN001
        gains,  # noqa: ANN001
        stop,  # noqa: ANN001
        wanted,  # noqa: ANN001
        panel,  # noqa: ANN001
        first,  # noqa: ANN001
        n,  # noqa: ANN001
        STEPS: tl.constexpr,
        WIDTH: tl.constexpr,
        LINES: tl.constexpr,
    ):
        """One row of the batch: gains stay in registers, factors go through memory that the cache holds."""
        row = tl.program_id(0).to(tl.int64)
        left += row * n * n
        gains += row * n
        panel += row * STEPS * n
        items = tl.arange(0, WIDTH)
        real = items < n
        now = tl.load(gains + items, mask=real, other=-float("inf"))
        least = tl.load(stop + row)
        steps = tl.minimum(tl.load(wanted + row) - first, STEPS)
        best = tl.max(now, 0)
        step = 0
        while (step < steps) & (best >= least):
            item = tl.argmax(now, 0, tie_break_left=True)
            line = tl.load(left + item.to(tl.int64) * n + items, mask=real, other=0.0)
            for begin in range(0, step, LINES):
                past = begin + tl.arange(0, LINES)
                done = past < step
                weights = tl.load(panel + past * n + item, mask=done, other=0.0)
                factors = tl.load(
                    panel + past[:, None] * n + items[None, :], mask=done[:, None] & real[None, :], other=0.0
                )
                line -= tl.sum(weights[:, None] * factors, 0)
            factor = line * tl.rsqrt(best)
            tl.store(panel + step * n + items, factor, mask=real)
            # The next steps read this factor from other threads of the program.
            tl.debug_barrier()
            now = tl.where(items == item, -float("inf"), now - factor * factor)
            best = tl.max(now, 0)
            step += 1
        tl.store(gains + items, now, mask=real)
