"""LLaVA-Video in its own published layout: SigLIP, projector, 2x2 pooling, a newline after each row, Qwen2.

With 384 pixels and patches of 14 a frame becomes 14 rows of 14 tokens and a newline (210), or 13 of
13 and a newline (182) where patches are averaged. Layout, prompt and time instruction are those of
Zhang et al., "Video Instruction Tuning with Synthetic Data" (arXiv 2410.02713), as its code has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from pipeline.engine.chat import Chat
from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.decoder import Decoder
from pipeline.engine.families.base import ModelSizes, PromptTokens
from pipeline.engine.families.llava_video_config import LlavaVideoConfig
from pipeline.engine.families.siglip import SiglipTower
from pipeline.engine.families.text import ChatText, PlainPositions
from pipeline.engine.preprocess import FramePreprocessor
from pipeline.engine.weights import fill_weights
from pipeline.frame_size import FixedSize
from pruning import VideoGrid

if TYPE_CHECKING:
    from pipeline.engine.families.llava_video_model import LlavaVideoModel

_PLACE_HOLDER = "<image>"


class LlavaVideo(ChatText, PlainPositions):
    """A LLaVA-Video model on one device."""

    architecture: ClassVar[str] = "LlavaQwenForCausalLM"
    model_type: ClassVar[str] = "llava"
    default_num_frames: ClassVar[int] = 64

    def __init__(self, model: LlavaVideoModel, chat: Chat, preprocessor: FramePreprocessor) -> None:
        """Use `load`, or bring the parts."""
        self._model = model
        self._chat = chat
        self._preprocessor = preprocessor
        self._tower = SiglipTower(model.tower, -1)  # the tower lacks its last layer already
        self.frames_per_step = 1
        self.decoder = Decoder(model.model, model.lm_head, model.config.text)

    @classmethod
    def load(cls, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Self:
        """Load from a folder; ModelError for parts that this family does not know."""
        from pipeline.engine.families.llava_video_model import LlavaVideoModel  # late: see `families`

        config = LlavaVideoConfig.read(checkpoint)
        side = config.vision.image_size
        half = (0.5, 0.5, 0.5)  # SigLIP's
        preprocessor = FramePreprocessor.from_folder(
            checkpoint.folder, default=FramePreprocessor(side, side, mean=half, std=half, rescale_factor=1 / 255)
        )
        preprocessor.check_side(side, checkpoint.folder)
        chat = Chat.with_text_template(checkpoint.folder, _PLACE_HOLDER, config.text)
        with torch.device("meta"):
            model = LlavaVideoModel(config)
        fill_weights(model, checkpoint.folder, dtype, device)
        model.tie_weights()
        model.fix_tables(device)
        return cls(model.eval(), chat, preprocessor)

    def to(self, device: torch.device) -> None:
        """Move weights and tables to another device."""
        self._model.to(device)

    @classmethod
    def sizes(cls, checkpoint: Checkpoint) -> ModelSizes:
        """Sizes from the config alone."""
        config = LlavaVideoConfig.read(checkpoint)
        return ModelSizes(
            frame_size=FixedSize(config.vision.image_size, config.vision.image_size),
            tokens_per_frame=config.side * (config.side + 1),
            num_layers=config.text.num_hidden_layers,
            hidden_size=config.text.hidden_size,
            max_positions=config.text.max_position_embeddings,
        )

    def grid(self, num_frames: int, size: tuple[int, int] | None = None) -> VideoGrid:
        """Rows of tokens that each end with a newline, whatever a frame's size."""
        side = self._model.config.side
        columns = side + 1
        newlines = range(side, side * columns, columns)
        return VideoGrid(num_frames, side * columns, constants=tuple(newlines), columns=columns)

    def preprocess(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 [T, H, W, 3] to pixels [T, 3, side, side]."""
        return self._preprocessor(frames, self.decoder.dtype)

    def patches(self, pixels: torch.Tensor) -> int:
        """Patches of a frame, before pooling."""
        return self._model.config.patches**2

    def encode(self, pixels: torch.Tensor, with_attention: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pixels [T, 3, side, side] to video tokens [T, positions, hidden], and what SigLIP attends to if asked for.

        Newlines stand for no patch and receive an attention of 0.
        """
        model = self._model
        features, received = self._tower(pixels, with_attention)
        tokens = model.lay_out(model.model.mm_projector(features), model.model.image_newline)
        if received is None:
            return tokens, None
        return tokens, model.lay_out(received[..., None], received.new_zeros(1))[..., 0]

    def time_instruction(self, frame_times_s: Sequence[float], duration_s: float) -> str | None:
        """What the model was told in training; to the letter, the space that it lacks included."""
        times = ",".join(f"{time:.2f}s" for time in frame_times_s)
        return (
            f"The video lasts for {duration_s:.2f} seconds, and {len(frame_times_s)} frames are uniformly sampled "
            f"from it. These frames are located at {times}.Please answer the following questions related to this video."
        )

    def tokenize(self, prompt: str) -> PromptTokens:
        """The language model's chat template around one video, a line break and the prompt."""
        before, after = self._chat.tokenize(prompt)
        return PromptTokens(before, after, tail=0)

    def embed_prompt(self, prompt: PromptTokens) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings before the video and after it."""
        return self.decoder.embed(prompt.before), self.decoder.embed(prompt.after)
