"""What the engine needs to know about a model family; adding one is one file beside this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch

from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.decoder import Decoder
from pipeline.frame_size import FrameSize
from pruning import VideoGrid


@dataclass(frozen=True)
class PromptTokens:
    """A prompt around one video: text ids before it, `tail` learnt vectors right after it, text ids after.

    The tail belongs to the text: it is never pruned.
    """

    before: list[int]
    after: list[int]
    tail: int

    @property
    def length(self) -> int:
        """M, the tokens that are not video."""
        return len(self.before) + self.tail + len(self.after)


@dataclass(frozen=True)
class ModelSizes:
    """What a config says about the sizes of a model: its frames, its decoder, its trained positions."""

    frame_size: FrameSize  # `preprocess` scales to it, and leaves frames of that size unscaled
    tokens_per_frame: int
    num_layers: int
    hidden_size: int
    max_positions: int
    frames_per_step: int = 1  # frames that become one of the grid together; each counts its part of the tokens


class Family(Protocol):
    """A loaded model of one family."""

    architecture: ClassVar[str]  # as config.json's "architectures" names it
    model_type: ClassVar[str]  # as config.json's "model_type" names it
    default_num_frames: ClassVar[int]  # what the published models were trained for

    decoder: Decoder
    frames_per_step: int  # frames that the vision tower takes together: one row of `preprocess`, one frame of the grid

    @classmethod
    def load(cls, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Self:
        """Load weights, tokenizer and processor settings; ModelError if anything does not fit."""
        ...

    def to(self, device: torch.device) -> None:
        """Move weights and tables to another device; those that are there already stay as they are."""
        ...

    @classmethod
    def sizes(cls, checkpoint: Checkpoint) -> ModelSizes:
        """Sizes from the config alone; ModelError if it is not one of this family's."""
        ...

    def grid(self, num_frames: int, size: tuple[int, int] | None = None) -> VideoGrid:
        """The token grid of a video of `num_frames` frames of `size` (height, width) pixels.

        A family whose grid depends on the size takes None for the largest grid that it makes.
        """
        ...

    def preprocess(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 [T, H, W, 3] of any size to the vision tower's input, T' rows of a shape that the size alone decides.

        T' is T / `frames_per_step`, rounded up: an incomplete last step repeats its last frame.
        """
        ...

    def patches(self, pixels: torch.Tensor) -> int:
        """Patches that the vision tower works on for each of these rows of `preprocess`."""
        ...

    def encode(self, pixels: torch.Tensor, with_attention: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Rows of `preprocess` from any videos, of one shape, to video tokens [T', positions, hidden].

        The second is, if asked for, [T', positions] float32: the share of attention that each patch
        receives in the last layer of the vision tower that is used, mean over queries and heads,
        brought to the token grid as the tokens are; else None.
        """
        ...

    def time_instruction(self, frame_times_s: Sequence[float], duration_s: float) -> str | None:
        """The words before a prompt that say when the frames were shown; None for models trained without such."""
        ...

    def tokenize(self, prompt: str) -> PromptTokens:
        """Put the prompt and one video into the chat template; ValueError if it holds a place holder."""
        ...

    def embed_prompt(self, prompt: PromptTokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Input embeddings before the video and after it, tail included, [n, hidden] each."""
        ...

    def embed_user_prompt(self, prompt: str) -> torch.Tensor:
        """Input embeddings [m, hidden] of the user's words alone, tokenized as they stand in the chat template."""
        ...

    def positions(self, prompt: PromptTokens, grid: VideoGrid) -> torch.Tensor:
        """Every token's position in the unpruned sequence, int64 [N + M], or [3, N + M] for M-RoPE.

        Generated tokens count on from `next_position`, on all axes.
        """
        ...

    def next_position(self, prompt: PromptTokens, grid: VideoGrid) -> int:
        """The first generated token's position: one behind the largest of `positions`."""
        ...

    def is_end(self, token_id: int) -> bool:
        """Whether a generated token ends the answer."""
        ...

    def decode_text(self, token_ids: list[int]) -> str:
        """Generated tokens as text, without special tokens."""
        ...
