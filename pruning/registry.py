"""Pruning methods by name. A method's module, and torch with it, is loaded when the method is made."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pruning.config import PruningConfig
    from pruning.protocol import Pruner

_METHODS = {
    "hieravid": ("pruning.hieravid", "HieraVid"),
    "none": ("pruning.peers.none", "NoPruning"),
    "uniform": ("pruning.peers.uniform", "UniformTokens"),
    "random": ("pruning.peers.random", "RandomTokens"),
    "fastv": ("pruning.peers.fastv", "FastV"),
    "framefusion": ("pruning.peers.framefusion", "FrameFusion"),
    "cdpruner": ("pruning.peers.cdpruner", "CDPruner"),
    "divprune": ("pruning.peers.divprune", "DivPrune"),
    "fastvid": ("pruning.peers.fastvid", "FastVID"),
    "vidcom2": ("pruning.peers.vidcom2", "VidCom2"),
    "evs": ("pruning.peers.evs", "EVS"),
}


def method_names() -> tuple[str, ...]:
    """Names of the methods that can be asked for, sorted."""
    return tuple(sorted(_METHODS))


def check_method(name: str) -> str:
    """Return `name` if a method is registered under it, else raise ValueError naming the known ones."""
    if name in _METHODS:
        return name
    close = difflib.get_close_matches(name, _METHODS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown pruning method {name!r}, known: {', '.join(method_names())}{hint}")


def make_pruner(config: PruningConfig) -> Pruner:
    """Build the pruner that a config describes. Only HieraVid has options."""
    module, name = _METHODS[check_method(config.method)]
    method = getattr(import_module(module), name)
    return method(config) if config.method == "hieravid" else method()
