"""Numbers of the host on their way to the device, without making the host wait for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def upload(
    numbers: torch.Tensor | Sequence[int], device: torch.device, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """Numbers, or a tensor on the host, as a tensor on `device`.

    `torch.tensor(…, device="cuda")` copies from pageable memory, which waits until the device has done
    all that it was given before. From pinned memory the copy takes its place in the stream instead.
    """
    tensor = torch.as_tensor(numbers, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
