"""A checkpoint's tokenizer and chat template: prompts to token ids around a video, ids back to text."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig

from pipeline.engine.checkpoint import one_line, read_json
from pipeline.engine.errors import ModelError

_MARK = "\ue000"  # of Unicode's private use: no template contains it
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


@dataclass(frozen=True)
class Chat:
    """A tokenizer with a chat template that shows one video to the model.

    `place_holder` is what stands in the template's text where the video goes; a prompt may contain
    none of `place_holders`. A multimodal template puts it there itself, for the part of a message
    that is a video; with `is_text_only` a message is nothing but text, and starts with it.
    """

    tokenizer: Any
    template: str
    place_holder: str
    place_holders: tuple[str, ...]
    end_ids: frozenset[int]
    is_text_only: bool = False

    @classmethod
    def from_folder(cls, folder: Path, video_id: int, *other_place_holder_ids: int) -> Chat:
        """Read tokenizer, multimodal template and end-of-text ids; ModelError if the video token is unknown to them."""
        tokenizer = _read_tokenizer(folder)
        tokens = tokenizer.convert_ids_to_tokens([video_id, *other_place_holder_ids])
        if tokens[0] is None:
            raise ModelError(f"{folder}: the tokenizer has no token {video_id}, config.json's video token")
        return cls(
            tokenizer=tokenizer,
            template=_read_template(folder, tokenizer),
            place_holder=tokens[0],
            place_holders=tuple(token for token in tokens if token is not None),
            end_ids=_read_end_ids(folder, tokenizer),
        )._checked(folder)

    @classmethod
    def with_text_template(cls, folder: Path, place_holder: str, config: PreTrainedConfig) -> Chat:
        """Read a language model's own tokenizer and template, which know nothing of videos; ModelError as above.

        `config` is the language model's: the folder's config.json may describe something else.
        """
        tokenizer = _read_tokenizer(folder, config)
        return cls(
            tokenizer=tokenizer,
            template=_read_template(folder, tokenizer),
            place_holder=place_holder,
            place_holders=(place_holder,),
            end_ids=_read_end_ids(folder, tokenizer),
            is_text_only=True,
        )._checked(folder)

    def tokenize(self, prompt: str) -> tuple[list[int], list[int]]:
        """Token ids before and after the video; ValueError if the prompt contains a place holder itself."""
        for token in self.place_holders:
            if token in prompt:
                raise ValueError(f"the prompt must not contain {token}, the place of the video in the chat template")
        # The text is cut, not its ids: the place holder need not be a token.
        parts = self._render(prompt).split(self.place_holder)
        if len(parts) != 2:
            raise ModelError(f"the chat template puts {len(parts) - 1} videos into the prompt instead of 1")
        return self._ids(parts[0]), self._ids(parts[1])

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

    def decode(self, token_ids: list[int]) -> str:
        """Text of generated tokens, white space and all, without special tokens and the end of text."""
        return self.tokenizer.decode([i for i in token_ids if i not in self.end_ids], skip_special_tokens=True)

    def _checked(self, folder: Path) -> Chat:
        """Itself; a template that fails or does not show the video is refused here, not at the first request."""
        try:
            self.tokenize("")
        except ModelError as error:
            raise ModelError(f"{folder}: {error}") from error
        except Exception as error:  # a template is a program
            raise ModelError(f"{folder}: the chat template fails ({one_line(error)})") from error
        return self

    def _render(self, prompt: str) -> str:
        """The chat template's text around one video and the prompt."""
        parts = [{"type": "video"}, {"type": "text", "text": prompt}]
        content = f"{self.place_holder}\n{prompt}" if self.is_text_only else parts
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.template,
            add_generation_prompt=True,
            tokenize=False,
        )

    def _ids(self, text: str) -> list[int]:
        """Token ids of a text, none for the place holder."""
        parts = text.split(self.place_holder)
        return [token for part in parts for token in self.tokenizer(part, add_special_tokens=False).input_ids]


def _shared(ids: list[int], others: list[int]) -> int:
    """How many ids two lists have in common at their start."""
    same = (one == other for one, other in zip(ids, others, strict=False))
    return sum(takewhile(bool, same))


def _read_tokenizer(folder: Path, config: PreTrainedConfig | None = None) -> Any:
    """The tokenizer of a folder whose config.json is transformers' own, else of the model that `config` describes."""
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(f"{folder}: no tokenizer (none of {', '.join(_TOKENIZER_FILES)})")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            read_json(folder / name)  # here, since AutoTokenizer does not say which file is damaged
    try:
        return AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged file surfaces as whatever its parser raises
        raise ModelError(f"{folder}: the tokenizer cannot be loaded ({one_line(error)})") from error


def _read_template(folder: Path, tokenizer: Any) -> str:
    """The multimodal template: older folders keep it beside a text-only one of the tokenizer's."""
    legacy = folder / "chat_template.json"
    if not (folder / "chat_template.jinja").is_file() and legacy.is_file():
        template = read_json(legacy).get("chat_template")
        if not isinstance(template, str):
            raise ModelError(f"{legacy}: no chat_template")
        return template
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
