"""Pruning methods by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from pruning.hieravid import HieraVid
from pruning.peers.cdpruner import CDPruner
from pruning.peers.divprune import DivPrune
from pruning.peers.evs import EVS
from pruning.peers.fastv import FastV
from pruning.peers.fastvid import FastVID
from pruning.peers.framefusion import FrameFusion
from pruning.peers.none import NoPruning
from pruning.peers.random import RandomTokens
from pruning.peers.uniform import UniformTokens
from pruning.peers.vidcom2 import VidCom2
from pruning.protocol import Pruner

if TYPE_CHECKING:
    from pruning.config import PruningConfig

_METHODS: dict[str, Callable[[PruningConfig], Pruner]] = {
    HieraVid.name: HieraVid,
    NoPruning.name: lambda config: NoPruning(),
    UniformTokens.name: lambda config: UniformTokens(),
    RandomTokens.name: lambda config: RandomTokens(),
    FastV.name: lambda config: FastV(),
    FrameFusion.name: lambda config: FrameFusion(),
    CDPruner.name: lambda config: CDPruner(),
    DivPrune.name: lambda config: DivPrune(),
    FastVID.name: lambda config: FastVID(),
    VidCom2.name: lambda config: VidCom2(),
    EVS.name: lambda config: EVS(),
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
