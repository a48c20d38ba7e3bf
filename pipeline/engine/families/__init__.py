"""Model families: how a checkpoint's frames and prompts become input embeddings.

Their files import the configurations of transformers' models only. The models themselves, which take two seconds to
import, are imported where one is loaded: who plans a job or checks one asks for sizes alone.
"""

from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.errors import ModelError
from pipeline.engine.families.base import Family, ModelSizes, PromptTokens
from pipeline.engine.families.llava_onevision import LlavaOnevision
from pipeline.engine.families.llava_video import LlavaVideo
from pipeline.engine.families.qwen2_vl import Qwen2VL

FAMILIES: tuple[type[Family], ...] = (LlavaOnevision, LlavaVideo, Qwen2VL)

__all__ = ["FAMILIES", "Family", "ModelSizes", "PromptTokens", "family_of"]


def family_of(checkpoint: Checkpoint) -> type[Family]:
    """The family that a checkpoint's config.json names; ModelError naming the supported ones if none does."""
    named = [checkpoint.config.get("model_type"), *(checkpoint.config.get("architectures") or [])]
    for family in FAMILIES:
        if family.model_type == named[0] and (len(named) == 1 or family.architecture in named):
            return family
    found = " ".join(str(name) for name in named if name) or "none"
    supported = ", ".join(family.architecture for family in FAMILIES)
    raise ModelError(f"{checkpoint.folder}: unknown architecture ({found}); supported: {supported}")
