"""A checkpoint's tokenizer and chat template: prompts to token ids around a video, ids back to text."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from pipeline.engine.checkpoint import one_line, read_json
from pipeline.engine.errors import ModelError

_MARK = "\ue000"  # of Unicode's private use: no template contains it


@dataclass(frozen=True)
class Chat:
    """A tokenizer with a chat template that shows one video to the model."""

    tokenizer: Any
    template: str
    video_id: int
    place_holders: tuple[str, ...]
    end_ids: frozenset[int]

    @classmethod
    def from_folder(cls, folder: Path, video_id: int, *other_place_holder_ids: int) -> Chat:
        """Read tokenizer, template and end-of-text ids; ModelError if the video token is unknown to them."""
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a damaged file surfaces as whatever its parser raises
            raise ModelError(f"{folder}: the tokenizer cannot be loaded ({one_line(error)})") from error
        ids = (video_id, *other_place_holder_ids)
        place_holders = tuple(token for token in tokenizer.convert_ids_to_tokens(list(ids)) if token is not None)
        if tokenizer.convert_ids_to_tokens(video_id) is None:
            raise ModelError(f"{folder}: the tokenizer has no token {video_id}, config.json's video token")
        chat = cls(
            tokenizer=tokenizer,
            template=_read_template(folder, tokenizer),
            video_id=video_id,
            place_holders=place_holders,
            end_ids=_read_end_ids(folder, tokenizer),
        )
        chat.tokenize("")  # a template that does not show the video is refused here, not at the first request
        return chat

    def tokenize(self, prompt: str) -> tuple[list[int], list[int]]:
        """Token ids before and after the video; ValueError if the prompt contains a place holder itself."""
        for token in self.place_holders:
            if token in prompt:
                raise ValueError(f"the prompt must not contain {token}, the place of the video in the chat template")
        ids = self._ids(self._render(prompt))
        if ids.count(self.video_id) != 1:
            raise ModelError(f"the chat template puts {ids.count(self.video_id)} videos into the prompt instead of 1")
        place = ids.index(self.video_id)
        return ids[:place], ids[place + 1 :]

    def prompt_ids(self, prompt: str) -> list[int]:
        """The tokens of the templated text that stand for the prompt's own words, none for an empty prompt.

        A token that joins the prompt's edge with the template belongs to the prompt. ModelError if the
        template does not show the prompt exactly once.
        """
        around = self._render(_MARK).split(_MARK)
        if len(around) != 2:
            raise ModelError(f"the chat template shows the prompt {len(around) - 1} times instead of once")
        before, after = around
        text = self._render(prompt)
        if len(text) <= len(before) + len(after):
            return []
        # Ids are compared instead of offsets in the text: not every tokenizer has those, and some trim them.
        ids = self._ids(text)
        first = _shared(ids, self._ids(before))
        behind = _shared(ids[first:][::-1], self._ids(after)[::-1])
        return ids[first : len(ids) - behind]

    def _render(self, prompt: str) -> str:
        """The chat template's text around one video and the prompt."""
        content = [{"type": "video"}, {"type": "text", "text": prompt}]
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.template,
            add_generation_prompt=True,
            tokenize=False,
        )

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def decode(self, token_ids: list[int]) -> str:
        """Text of generated tokens, without special tokens and the end of text."""
        return self.tokenizer.decode([i for i in token_ids if i not in self.end_ids], skip_special_tokens=True).strip()


def _shared(ids: list[int], others: list[int]) -> int:
    """How many ids two lists have in common at their start."""
    same = (one == other for one, other in zip(ids, others, strict=False))
    return sum(takewhile(bool, same))


def _read_template(folder: Path, tokenizer: Any) -> str:
    """The multimodal template: older folders keep it beside a text-only one of the tokenizer's."""
    legacy = folder / "chat_template.json"
    if not (folder / "chat_template.jinja").is_file() and legacy.is_file():
        return read_json(legacy)["chat_template"]
    if not isinstance(tokenizer.chat_template, str):
        raise ModelError(f"{folder}: no chat template (chat_template.jinja)")
    return tokenizer.chat_template


def _read_end_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: generation_config.json's, else the tokenizer's own."""
    path = folder / "generation_config.json"
    config = read_json(path) if path.is_file() else {}
    ids = config.get("eos_token_id")
    ids = tokenizer.eos_token_id if ids is None else ids
    if ids is None:
        raise ModelError(f"{folder}: neither generation_config.json nor the tokenizer names an end-of-text token")
    return frozenset(ids if isinstance(ids, list) else [ids])
