"""What families have in common beside their pictures: the user's words, the answer's, and plain positions."""

from __future__ import annotations

import torch

from pipeline.engine.chat import Chat
from pipeline.engine.decoder import Decoder
from pipeline.engine.families.base import PromptTokens
from pruning import VideoGrid


class ChatText:
    """The part of a family that its chat template and tokenizer decide."""

    decoder: Decoder
    _chat: Chat

    def embed_user_prompt(self, prompt: str) -> torch.Tensor:
        """Embeddings of the user's words alone, [m, hidden]."""
        return self.decoder.embed(self._chat.prompt_ids(prompt))

    def is_end(self, token_id: int) -> bool:
        """Whether a generated token ends the answer."""
        return token_id in self._chat.end_ids

    def decode_text(self, token_ids: list[int]) -> str:
        """Generated tokens as text, without special tokens."""
        return self._chat.decode(token_ids)


class PlainPositions:
    """Positions that count text and video tokens alike."""

    decoder: Decoder

    def positions(self, prompt: PromptTokens, grid: VideoGrid) -> torch.Tensor:
        """Plain counting, int64 [N + M]."""
        return torch.arange(grid.tokens + prompt.length, device=self.decoder.device)

    def next_position(self, prompt: PromptTokens, grid: VideoGrid) -> int:
        """The unpruned sequence's length."""
        return grid.tokens + prompt.length
