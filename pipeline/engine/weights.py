"""A module's weights from the safetensors files of a folder, name for name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pipeline.engine.checkpoint import one_line, read_json
from pipeline.engine.errors import ModelError


def fill_weights(model: nn.Module, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Give each parameter of `model`, as a rule on the meta device, the weight of its name in the folder's files.

    Weights go to the device one by one and become `dtype` there. Raises ModelError, before any of
    them is read, for a file that is absent or damaged and for the first weight that is of another
    shape, missing or left over.
    """
    wanted = dict(model.named_parameters())
    files = weight_files(folder)
    found: set[str] = set()
    for path in files:
        with open_weights(path) as weights:
            for name in weights.keys():  # noqa: SIM118 (not a dict)
                found.add(name)
                shape = list(weights.get_slice(name).get_shape())
                if name in wanted and shape != list(wanted[name].shape):
                    expected = list(wanted[name].shape)
                    raise ModelError(f"{folder}: weight {name} has shape {shape}, the model wants {expected}")
    _refuse(folder, wanted.keys() - found, "is missing")
    _refuse(folder, found - wanted.keys(), "is not part of the model")
    for path in files:
        with open_weights(path, str(device)) as weights:
            for name in weights.keys():  # noqa: SIM118
                _put(model, name, weights.get_tensor(name).to(dtype))


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files: those that an index names, else all.

    Raises ModelError if there are none, for one that the index names and that is not there, and for
    one whose header or length is damaged.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    files = _indexed_files(indexes[0]) if indexes else sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
        found = f"; pickled weights ({pickled[0]}) are never loaded" if pickled else ""
        raise ModelError(f"{folder}: no .safetensors weights{found}")
    for path in files:
        with open_weights(path):
            pass
    return files


def _indexed_files(index: Path) -> list[Path]:
    """The files that an index names, all of them beside it."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(f"{index}: weight_map must say which file each weight is in")
    files = [index.parent / name for name in sorted(set(names.values()))]
    for path in files:
        if path.parent != index.parent or not path.is_file():
            raise ModelError(f"{path}: named in {index.name}, but there is no such file")
    return files


@contextmanager
def open_weights(path: Path, device: str = "cpu") -> Iterator[Any]:
    """A safetensors file, whose weights are read to `device`; ModelError naming the file if it is damaged."""
    try:
        with safe_open(path, framework="pt", device=device) as weights:
            yield weights
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not readable as safetensors ({one_line(error)})") from error


def _refuse(folder: Path, names: set[str], problem: str) -> None:
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise ModelError(f"{folder}: weight {min(names)} {problem}{more}")


def _put(model: nn.Module, name: str, weight: torch.Tensor) -> None:
    """Put a weight into the place of the parameter of that name."""
    owner, _, own_name = name.rpartition(".")
    setattr(model.get_submodule(owner), own_name, nn.Parameter(weight, requires_grad=False))
