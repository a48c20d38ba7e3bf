"""What config.json of a LLaVA-Video says: sizes, and parts that this family does not know."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from transformers import Qwen2Config, SiglipVisionConfig

from pipeline.engine.checkpoint import Checkpoint, one_line
from pipeline.engine.decoder import check_decoder_config
from pipeline.engine.errors import ModelError

# config.json names its vision tower and says nothing of its sizes.
_TOWERS: dict[str, dict[str, Any]] = {
    "siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    }
}

# What another value of these would change in the forward pass; the first of each is the published one.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_newline_position": ("grid",),
    "mm_patch_merge_type": ("spatial_unpad",),
    "mm_spatial_pool_mode": ("bilinear", "average"),
    "mm_spatial_pool_stride": (2, None),
    "mm_vision_select_layer": (-2,),
    "mm_resampler_type": (None,),
    "mm_use_im_start_end": (False, None),
    "add_faster_video": (False, None),
}

STRIDE = 2
"""Patches a side of what becomes one token."""


@dataclass(frozen=True)
class LlavaVideoConfig:
    """Sizes of a model. `vision` counts the tower's layers without the last one, which is not part of the model.

    `pool_mode` says how 2 x 2 patches become a token: "bilinear" rounds an odd side up, "average" down.
    """

    text: Qwen2Config
    vision: SiglipVisionConfig
    pool_mode: str

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> LlavaVideoConfig:
        """The folder's config; ModelError, in one line, for parts that would need another forward pass."""
        path, content = checkpoint.folder / "config.json", checkpoint.config
        for key, values in _SUPPORTED.items():
            if content.get(key) not in values:
                supported = ", ".join(repr(value) for value in values if value is not None) or "none"
                raise ModelError(f"{path}: {key} {content.get(key)!r} is not supported; supported: {supported}")
        # One object describes all parts; of the language model is what a Qwen2Config knows.
        known = {field.name for field in fields(Qwen2Config)} | {"rope_theta", "rope_scaling"}
        text = {key: value for key, value in content.items() if key in known and value is not None}
        try:
            config = cls(Qwen2Config.from_dict(text), _vision_config(content), content["mm_spatial_pool_mode"])
            check_decoder_config(config.text)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        except Exception as error:  # transformers' validation raises whatever its fields raise
            raise ModelError(f"{path}: {one_line(error)}") from error
        if content.get("mm_hidden_size", config.vision.hidden_size) != config.vision.hidden_size:
            raise ModelError(
                f"{path}: mm_hidden_size {content['mm_hidden_size']} is not the hidden size "
                f"{config.vision.hidden_size} of its vision tower"
            )
        return config

    @property
    def patches(self) -> int:
        """Patches a side of a frame."""
        return self.vision.image_size // self.vision.patch_size

    @property
    def side(self) -> int:
        """Tokens a side of a frame, newlines not counted."""
        return math.ceil(self.patches / STRIDE) if self.pool_mode == "bilinear" else self.patches // STRIDE


def _vision_config(content: dict[str, Any]) -> SiglipVisionConfig:
    """The tower that mm_vision_tower names, else config.json's vision_config, up to its last layer but one."""
    name = str(content.get("mm_vision_tower"))
    # A published config.json also holds a vision_config that belongs to no part of it: a known name comes first.
    sizes = _TOWERS.get(name.rsplit("/", 1)[-1])
    if sizes is None:
        sizes = content.get("vision_config")
        kind = sizes.get("model_type") if isinstance(sizes, dict) else None
        if kind != "siglip_vision_model":
            raise ModelError(
                f"the sizes of mm_vision_tower {name!r} are unknown; known: {', '.join(_TOWERS)}, "
                "or those of a SigLIP in vision_config"
            )
    kept = {**sizes, "num_hidden_layers": sizes["num_hidden_layers"] - 1, "vision_use_head": False}
    return SiglipVisionConfig.from_dict(kept)
