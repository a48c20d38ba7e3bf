"""lmms-eval drives the engine: its requests become ours, our answers its responses.

lmms-eval (0.7) makes the adapter for `--model hieravid` from model arguments such as
`model=builtin:tiny,method=hieravid,retention=0.3,frames=32`. It lives in an environment of its own: without it
this module imports all the same, and only the base class is missing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import yaml
from transformers import AutoTokenizer

from pipeline.engine import Answer, AnswerStats, Request, VideoLLM
from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.info import DeviceName, DtypeName
from pipeline.evaluate.lmms_requests import Asked, AskedVideos
from pruning import PruningConfig

if find_spec("lmms_eval"):
    from lmms_eval.api.instance import GenerationResult as _Response
    from lmms_eval.api.model import lmms as _Model
else:

    @dataclass
    class _Response:
        """lmms-eval's wrapper of a response."""

        text: Any

    class _Model:
        """What the adapter uses of lmms-eval's base class."""

        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}


MODEL_NAME = "hieravid"


def manifest() -> Any:
    """How lmms-eval finds the adapter: our entry point of its group `lmms_eval.models`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL_NAME, simple_class_path=f"{__name__}.{VideoLLMAdapter.__name__}")


class VideoLLMAdapter(_Model):
    """The engine with one pruning config, as a "simple" model of lmms-eval: a text and a video file a request."""

    is_simple = True

    def __init__(
        self,
        model: str = "builtin:tiny",
        method: str = "hieravid",
        retention: float = 1.0,
        frames: int | None = None,
        device: DeviceName = "auto",
        dtype: DtypeName = "auto",
        max_new_tokens: int = 128,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        """Load `model`, a local folder or builtin:tiny; a second adapter of the same model shares its weights.

        `frames` of a video are by default what the model was trained for. `max_new_tokens` serves tasks that
        do not say. `batch_size` videos are decoded, encoded and answered together; `max_batch_size` is passed
        by lmms-eval and means nothing here. `options` are those of PruningConfig, texts read as YAML. Raises
        ValueError where there are several processes, and what the engine and PruningConfig raise.
        """
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("the adapter is one process on one device: start one for each, with --offset and --limit")
        self._llm, self._tokenizer = _load(str(model), device, dtype)
        read = {name: yaml.safe_load(value) if isinstance(value, str) else value for name, value in options.items()}
        config = PruningConfig(method=method, retention=retention, **read)
        self.pruning = self._llm.resolve(config)
        self.videos = AskedVideos(int(frames or self._llm.info.default_frames), int(batch_size))
        self._max_new_tokens = int(max_new_tokens)
        self.stats: list[AnswerStats] = []
        """What each answer cost so far."""

    def describe(self) -> dict[str, Any]:
        """All that decides the answers, as JSON."""
        info = self._llm.info
        return {
            "model": info.name,
            "model_hash": info.model_hash,
            "dtype": info.dtype,
            "device": info.device,
            "frames": self.videos.frames,
            "max_new_tokens": self._max_new_tokens,
            "pruning": self.pruning.model_dump(mode="json"),
        }

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to each instance, cut before the first of its stop texts (`until`); "" without a video."""
        texts = [""] * len(requests)
        for batch in self.videos.batches(requests, self.task_dict):
            answers = self._answer([_request(item, frames, **self._settings(item.wanted)) for item, frames in batch])
            for (item, _), answer in zip(batch, answers, strict=True):
                texts[item.place] = cut_before(answer.text, item.wanted.get("until"))
        return texts

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """The pairs of `losses`, for the scorers of lmms-eval.

        Its evaluator (0.7.0 to 0.7.3) makes a text of a bare pair, on which its own scorers then fail; what
        comes in its wrapper for responses reaches them as it is.
        """
        return [_Response(pair) for pair in self.losses(requests)]

    def losses(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(loss, whether greedy decoding says the same) of each continuation; (inf, False) without a video.

        lmms-eval's scorers take the choice of the lowest value, in spite of the name they call it by: so it is
        the mean negative log-probability, in nats a token. White space before the continuation, which lmms-eval puts
        between prompt and choice, is left out: in a chat the answer begins the model's turn.
        """
        results = [(math.inf, False)] * len(requests)
        for batch in self.videos.batches(requests, self.task_dict):
            forced = [self._tokenize(item.wanted.lstrip()) for item, _ in batch]
            prompts = {(item.video, item.context): (item, frames) for item, frames in batch}
            longest = max(map(len, forced))
            answers = self._answer(
                [_request(item, frames, max_new_tokens=longest) for item, frames in prompts.values()]
                + [_request(*shown, forced_token_ids=ids) for shown, ids in zip(batch, forced, strict=True)]
            )
            said = {key: answer.token_ids for key, answer in zip(prompts, answers, strict=False)}
            for (item, _), ids, answer in zip(batch, forced, answers[len(prompts) :], strict=True):
                is_greedy = tuple(said[item.video, item.context][: len(ids)]) == ids
                results[item.place] = (-float(np.mean(answer.logprobs or [])), is_greedy)
        return results

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refused: the engine answers one prompt about a video."""
        raise NotImplementedError("tasks of several rounds are not supported: one prompt about a video is answered")

    def _answer(self, requests: list[Request]) -> list[Answer]:
        answers = self._llm.answer(requests, self.pruning)
        self.stats += [answer.stats for answer in answers]
        return answers

    def _tokenize(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _settings(self, given: dict[str, Any]) -> dict[str, Any]:
        """The engine's settings for a task's generation kwargs; ValueError for beam search."""
        if int(given.get("num_beams") or 1) != 1:
            raise ValueError(f"num_beams {given['num_beams']} is not supported: the engine decodes without beams")
        is_greedy = given.get("do_sample") is False
        return {
            "max_new_tokens": int(given.get("max_new_tokens") or self._max_new_tokens),
            "temperature": 0.0 if is_greedy else float(given.get("temperature") or 0.0),
            "top_p": float(given.get("top_p") or 1.0),
        }


def _request(item: Asked, frames: np.ndarray, **settings: Any) -> Request:
    return Request(frames=frames, prompt=item.context, video_key=item.video, **settings)


@lru_cache(maxsize=1)
def _load(source: str, device: DeviceName, dtype: DtypeName) -> tuple[VideoLLM, Callable[..., Any]]:
    """A model and its tokenizer; the last pair is kept, so that a table of many retentions loads it once."""
    folder = Checkpoint.open(source).folder
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return VideoLLM.load(source, device, dtype), tokenizer


def cut_before(text: str, until: str | Iterable[str] | None) -> str:
    """The part of a text before the first of the stop texts."""
    stops = [until] if isinstance(until, str) else until or []
    ends = [text.find(stop) for stop in stops if stop and stop in text]
    return text[: min(ends)] if ends else text
