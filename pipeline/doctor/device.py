"""The devices that torch computes on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pipeline.doctor.check import Finding

_DRIVER = Path("/proc/driver/nvidia/version")
_WHEELS = "install a torch build of the driver's CUDA version (https://pytorch.org/get-started), or update the driver"


def look_at_device(wanted: Literal["auto", "cpu", "cuda"] = "auto") -> Finding:
    """Whether torch finds the machine's GPUs and really computes on each; without one the CPU serves."""
    import torch  # seconds

    driver, build = _driver_version(), torch.version.cuda
    torch_is = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        if wanted == "cuda":
            return Finding(
                "fail",
                f"model.device is cuda, and {torch_is} finds no GPU here",
                _WHEELS if driver else "start the job on a machine with a GPU, or set model.device=auto",
            )
        if driver is not None and wanted != "cpu":
            why = f"{torch_is} was built without CUDA" if build is None else f"{torch_is} (CUDA {build}) cannot use it"
            return Finding("fail", f"there is an NVIDIA driver {driver}, but {why}", _WHEELS)
        return Finding("ok", f"{torch_is}, no GPU: CPU float32")
    gpus = [_look_at_gpu(number) for number in range(torch.cuda.device_count())]
    found = f"{torch_is}, CUDA {build}, driver {driver or 'unknown'}: {'; '.join(told for told, _ in gpus)}"
    return Finding("ok", found) if all(works for _, works in gpus) else Finding("fail", found, _WHEELS)


def _look_at_gpu(number: int) -> tuple[str, bool]:
    """A GPU in words, and whether it computes: a build without its architecture says so at the first kernel only."""
    import torch

    device = torch.device("cuda", number)
    name = torch.cuda.get_device_name(device)
    try:
        total = torch.arange(4, device=device, dtype=torch.float32).sum().item()
        free, size = torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        return f"{name} does not compute ({str(error).splitlines()[0]})", False
    return f"{name}, {free / 2**30:.1f} of {size / 2**30:.1f} GiB free", total == 6.0


def _driver_version() -> str | None:
    """The NVIDIA driver's version, None where the kernel has none loaded."""
    try:
        text = _DRIVER.read_text()
    except OSError:
        return None
    match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return match[1] if match else "of unknown version"
