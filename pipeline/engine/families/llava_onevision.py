"""LLaVA-OneVision in the Hugging Face layout: SigLIP, projector, 2x2 pooling, Qwen2.

A frame becomes ceil(side / 2)² tokens (196 for 384 pixels and patches of 14); one learnt newline
follows the whole video and counts as text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from transformers import LlavaOnevisionConfig

from pipeline.engine.chat import Chat
from pipeline.engine.checkpoint import Checkpoint, one_line
from pipeline.engine.decoder import Decoder, check_decoder_config
from pipeline.engine.errors import ModelError
from pipeline.engine.families.base import ModelSizes, PromptTokens
from pipeline.engine.families.siglip import SiglipTower
from pipeline.engine.families.text import ChatText, PlainPositions
from pipeline.engine.preprocess import FramePreprocessor
from pipeline.frame_size import FixedSize
from pruning import VideoGrid


class LlavaOnevision(ChatText, PlainPositions):
    """A LLaVA-OneVision model on one device."""

    architecture: ClassVar[str] = "LlavaOnevisionForConditionalGeneration"
    model_type: ClassVar[str] = "llava_onevision"
    default_num_frames: ClassVar[int] = 32

    def __init__(self, model: Any, chat: Chat, preprocessor: FramePreprocessor) -> None:
        """Use `load`; `model` is a LlavaOnevisionForConditionalGeneration."""
        config = model.config
        self._model = model
        self._chat = chat
        self._preprocessor = preprocessor
        self._tower = SiglipTower(model.model.vision_tower, config.vision_feature_layer)
        self._columns = _columns(config)
        self._positions = self._columns**2
        self.frames_per_step = 1
        self.decoder = Decoder(model.model.language_model, model.lm_head, config.text_config)

    @classmethod
    def load(cls, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Self:
        """Load from a folder; ModelError for parts that this family does not know."""
        from transformers import LlavaOnevisionForConditionalGeneration  # late: see `families`

        config = _read_config(checkpoint)
        preprocessor = FramePreprocessor.from_folder(checkpoint.folder)
        preprocessor.check_side(config.vision_config.image_size, checkpoint.folder)
        chat = Chat.from_folder(checkpoint.folder, config.video_token_index, config.image_token_index)
        model: Any = checkpoint.load_weights(LlavaOnevisionForConditionalGeneration, dtype)
        return cls(model.to(device), chat, preprocessor)

    def to(self, device: torch.device) -> None:
        """Move weights and tables to another device."""
        self._model.to(device)

    @classmethod
    def sizes(cls, checkpoint: Checkpoint) -> ModelSizes:
        """Sizes from the config alone."""
        config = _read_config(checkpoint)
        side = config.vision_config.image_size
        return ModelSizes(
            frame_size=FixedSize(side, side),
            tokens_per_frame=_columns(config) ** 2,
            num_layers=config.text_config.num_hidden_layers,
            hidden_size=config.text_config.hidden_size,
            max_positions=config.text_config.max_position_embeddings,
        )

    def grid(self, num_frames: int, size: tuple[int, int] | None = None) -> VideoGrid:
        """One row of positions a frame, whatever its size; no position is constant."""
        return VideoGrid(num_frames, self._positions, columns=self._columns)

    def preprocess(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 [T, H, W, 3] to pixels [T, 3, side, side]."""
        return self._preprocessor(frames, self.decoder.dtype)

    def patches(self, pixels: torch.Tensor) -> int:
        """Patches of a frame, before pooling."""
        return _patches_a_side(self._model.config) ** 2

    def encode(self, pixels: torch.Tensor, with_attention: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pixels [T, 3, side, side] to video tokens [T, positions, hidden], and what SigLIP attends to if asked for."""
        model = self._model.model
        features, received = self._tower(pixels, with_attention)
        tokens = model.apply_pooling(model.multi_modal_projector(features))
        return tokens, None if received is None else model.apply_pooling(received[..., None])[..., 0]

    def time_instruction(self, frame_times_s: Sequence[float], duration_s: float) -> str | None:
        """None: it was trained without."""
        return None

    def tokenize(self, prompt: str) -> PromptTokens:
        """The chat template around one video and the prompt."""
        before, after = self._chat.tokenize(prompt)
        return PromptTokens(before, after, tail=1)

    def embed_prompt(self, prompt: PromptTokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings before the video, and newline plus embeddings after it."""
        newline = self._model.model.image_newline[None].to(self.decoder.dtype)
        return self.decoder.embed(prompt.before), torch.cat((newline, self.decoder.embed(prompt.after)))


def _patches_a_side(config: LlavaOnevisionConfig) -> int:
    return config.vision_config.image_size // config.vision_config.patch_size


def _columns(config: LlavaOnevisionConfig) -> int:
    """Tokens a side of a frame, after pooling."""
    return math.ceil(_patches_a_side(config) / 2)


def _read_config(checkpoint: Checkpoint) -> LlavaOnevisionConfig:
    """The folder's config, with those parts refused that would need another forward pass."""
    path = checkpoint.folder / "config.json"
    try:
        config = LlavaOnevisionConfig.from_dict(checkpoint.config)
        check_decoder_config(config.text_config)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # transformers' validation raises whatever its fields raise
        raise ModelError(f"{path}: {one_line(error)}") from error
    vision = config.vision_config.model_type
    if vision != "siglip_vision_model":
        raise ModelError(f"{path}: vision tower {vision!r} is not supported; supported: siglip_vision_model")
    if config.vision_feature_select_strategy != "full":
        raise ModelError(f"{path}: vision_feature_select_strategy must be 'full', since SigLIP has no CLS token")
    return config
