"""Which video tokens a VideoLLM keeps: the HieraVid method, its peers, and the protocol they share."""

from pruning.config import PruningConfig
from pruning.protocol import Kept, Needs, Pruner, StagePlan, UnreachableRetentionError, VideoGrid, VideoTokens
from pruning.registry import make_pruner, method_names

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
