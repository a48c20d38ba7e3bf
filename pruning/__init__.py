"""Which video tokens a VideoLLM keeps: the HieraVid method, its peers, and the protocol they share.

A job's settings are read without torch: what needs it is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pruning.config import PruningConfig
from pruning.registry import make_pruner, method_names

if TYPE_CHECKING:
    from pruning.protocol import Kept, Needs, Pruner, StagePlan, UnreachableRetentionError, VideoGrid, VideoTokens

__all__ = [
    "Kept",
    "Needs",
    "Pruner",
    "PruningConfig",
    "StagePlan",
    "UnreachableRetentionError",
    "VideoGrid",
    "VideoTokens",
    "make_pruner",
    "method_names",
]


def __getattr__(name: str) -> Any:
    """The names of the protocol (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("pruning.protocol"), name)
