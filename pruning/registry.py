"""Pruning methods by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from pruning.hieravid import HieraVid
from pruning.peers.none import NoPruning
from pruning.peers.random import RandomTokens
from pruning.peers.uniform import UniformTokens
from pruning.protocol import Pruner

if TYPE_CHECKING:
    from pruning.config import PruningConfig

_METHODS: dict[str, Callable[[PruningConfig], Pruner]] = {
    HieraVid.name: HieraVid,
    NoPruning.name: lambda config: NoPruning(),
    UniformTokens.name: lambda config: UniformTokens(),
    RandomTokens.name: lambda config: RandomTokens(),
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
    """Build the pruner that a config describes."""
    return _METHODS[check_method(config.method)](config)
