"""Qwen2-VL in the Hugging Face layout: dynamic resolution, two frames a token step, M-RoPE, Qwen2.

Wang et al. 2024 (arXiv 2409.12191), section 2.1. A frame becomes as many tokens as its size asks
for within a budget; `qwen2_vl_pixels` makes its patches and `qwen2_vl_vision` its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from transformers import Qwen2VLConfig

from pipeline.engine.chat import Chat
from pipeline.engine.checkpoint import Checkpoint, one_line
from pipeline.engine.decoder import Decoder, check_decoder_config
from pipeline.engine.errors import ModelError
from pipeline.engine.families.base import ModelSizes, PromptTokens
from pipeline.engine.families.qwen2_vl_pixels import PatchPreprocessor
from pipeline.engine.families.qwen2_vl_vision import VisionTower
from pipeline.engine.families.text import ChatText
from pruning import VideoGrid


class Qwen2VL(ChatText):
    """A Qwen2-VL model on one device."""

    architecture: ClassVar[str] = "Qwen2VLForConditionalGeneration"
    model_type: ClassVar[str] = "qwen2_vl"
    # Trained at two frames a second with at most 16,384 tokens a video (section 2.1), so at no fixed number:
    # 32 is the power of two that stays below, with at most 768 tokens for each two frames.
    default_num_frames: ClassVar[int] = 32

    def __init__(self, model: Any, chat: Chat, preprocessor: PatchPreprocessor) -> None:
        """Use `load`; `model` is a Qwen2VLForConditionalGeneration."""
        self._model = model
        self._chat = chat
        self._preprocessor = preprocessor
        self._tower = VisionTower(model.model.visual)
        self.frames_per_step = preprocessor.temporal_patch_size
        self.decoder = Decoder(model.model.language_model, model.lm_head, model.config.text_config)

    @classmethod
    def load(cls, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Self:
        """Load from a folder; ModelError for parts that this family does not know."""
        from transformers import Qwen2VLForConditionalGeneration  # late: see `families`

        config = _read_config(checkpoint)
        preprocessor = _read_preprocessor(checkpoint, config)
        chat = Chat.from_folder(checkpoint.folder, config.video_token_id, config.image_token_id)
        model: Any = checkpoint.load_weights(Qwen2VLForConditionalGeneration, dtype)
        return cls(model.to(device), chat, preprocessor)

    def to(self, device: torch.device) -> None:
        """Move weights and tables to another device."""
        self._model.to(device)

    @classmethod
    def sizes(cls, checkpoint: Checkpoint) -> ModelSizes:
        """Sizes from the config files alone; tokens a frame are those of the largest grid."""
        config = _read_config(checkpoint)
        preprocessor = _read_preprocessor(checkpoint, config)
        rows, columns = preprocessor.largest_grid()
        return ModelSizes(
            frame_size=preprocessor.frame_size,
            tokens_per_frame=-(-rows * columns // preprocessor.temporal_patch_size),
            num_layers=config.text_config.num_hidden_layers,
            hidden_size=config.text_config.hidden_size,
            max_positions=config.text_config.max_position_embeddings,
            frames_per_step=preprocessor.temporal_patch_size,
        )

    def grid(self, num_frames: int, size: tuple[int, int] | None = None) -> VideoGrid:
        """One frame of the grid a step; ValueError for frames that are far too narrow."""
        make = self._preprocessor
        rows, columns = make.largest_grid() if size is None else make.token_grid(*size)
        return VideoGrid(-(-num_frames // self.frames_per_step), rows * columns, columns=columns)

    def preprocess(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 [T, H, W, 3] to patches [T', rows, columns, patches a token, values a patch]."""
        return self._preprocessor(frames, self.decoder.dtype)

    def patches(self, pixels: torch.Tensor) -> int:
        """Patches of a step, before merging."""
        return pixels.shape[1] * pixels.shape[2] * pixels.shape[3]

    def encode(self, pixels: torch.Tensor, with_attention: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Patches [T', rows, columns, …] to video tokens [T', rows · columns, hidden], and the attention received."""
        return self._tower(pixels, with_attention)

    def time_instruction(self, frame_times_s: Sequence[float], duration_s: float) -> str | None:
        """None: it was trained without; positions alone tell the time."""
        return None

    def tokenize(self, prompt: str) -> PromptTokens:
        """The chat template around one video and the prompt; the video's start and end marks are text."""
        before, after = self._chat.tokenize(prompt)
        return PromptTokens(before, after, tail=0)

    def embed_prompt(self, prompt: PromptTokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings before the video and after it."""
        return self.decoder.embed(prompt.before), self.decoder.embed(prompt.after)

    def positions(self, prompt: PromptTokens, grid: VideoGrid) -> torch.Tensor:
        """M-RoPE's places in time, height and width, int64 [3, N + M]: on all axes alike for text.

        A token's axes count from the last text position on, step, row and column of its own.
        """
        device = self.decoder.device
        rows, columns = _rows_columns(grid)
        first = len(prompt.before)
        before = torch.arange(first, device=device).expand(3, -1)
        axes = (torch.arange(count, device=device) for count in (grid.frames, rows, columns))
        video = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1) + first
        after = torch.arange(len(prompt.after), device=device).expand(3, -1) + _text_after(prompt, grid)
        return torch.cat((before, video, after), dim=1)

    def next_position(self, prompt: PromptTokens, grid: VideoGrid) -> int:
        """Behind the text, or behind the last step of a video that lasts longer than that."""
        return max(_text_after(prompt, grid) + len(prompt.after), len(prompt.before) + grid.frames)


def _rows_columns(grid: VideoGrid) -> tuple[int, int]:
    columns = grid.columns or grid.positions
    return grid.positions // columns, columns


def _text_after(prompt: PromptTokens, grid: VideoGrid) -> int:
    """Position of the first token after the video: as far behind it as the frame's longer side has tokens.

    So transformers counts. The paper counts on from the largest position of all three axes, which is
    another only where a video has more steps than the longer side has tokens.
    """
    return len(prompt.before) + max(_rows_columns(grid))


def _read_preprocessor(checkpoint: Checkpoint, config: Qwen2VLConfig) -> PatchPreprocessor:
    """The folder's processor settings, whose patches must be the vision tower's."""
    preprocessor = PatchPreprocessor.from_folder(checkpoint.folder)
    vision = config.vision_config
    made = (preprocessor.patch_size, preprocessor.temporal_patch_size, preprocessor.merge_size)
    taken = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
    if made != taken:
        raise ModelError(
            f"{checkpoint.folder}: patch_size, temporal_patch_size and merge_size are {made} in the processor's "
            f"settings and {taken} in the vision tower's"
        )
    return preprocessor


def _read_config(checkpoint: Checkpoint) -> Qwen2VLConfig:
    """The folder's config, with those parts refused that would need another forward pass."""
    path = checkpoint.folder / "config.json"
    try:
        config = Qwen2VLConfig.from_dict(checkpoint.config)
        check_decoder_config(config.text_config)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # transformers' validation raises whatever its fields raise
        raise ModelError(f"{path}: {one_line(error)}") from error
    vision = config.vision_config
    if vision.model_type != "qwen2_vl_vision":
        raise ModelError(f"{path}: vision tower {vision.model_type!r} is not supported; supported: qwen2_vl_vision")
    if vision.in_channels != 3 or vision.hidden_size != config.text_config.hidden_size:
        raise ModelError(
            f"{path}: the vision tower makes tokens of {vision.hidden_size} numbers from {vision.in_channels} colour "
            f"channels, the language model takes {config.text_config.hidden_size} from 3"
        )
    return config
