"""transformers' own `generate` over the unpruned video, timed by phase.

Frames go through the engine's preprocessing here, too, since transformers' video processors need
torchvision. What follows is transformers' own: its forward pass, its cache, its loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, Qwen2ForCausalLM

from pipeline.benchmark.engine.measurement import Measurement, unpruned_plan
from pipeline.benchmark.engine.subject import Subject
from pipeline.engine.families.llava_onevision import LlavaOnevision
from pipeline.engine.families.llava_video import LlavaVideo
from pipeline.engine.families.qwen2_vl import Qwen2VL
from pipeline.engine.memory import PeakMemory
from pipeline.engine.stopwatch import Stopwatch
from pipeline.engine.vision import encode_videos

Inputs = Callable[[Sequence[np.ndarray]], dict[str, Any]]


class Dense:
    """A transformers model that answers about batches of videos of equal length."""

    def __init__(self, subject: Subject) -> None:
        """Over the subject's weights; `system` names the comparator."""
        self._family: Any = subject.family
        self._subject = subject
        self._inputs: Inputs
        self._generator: Any = subject.model
        if isinstance(self._family, LlavaOnevision):
            self.system = "transformers"
            self._inputs = self._llava_onevision
        elif isinstance(self._family, Qwen2VL):
            self.system = "transformers"
            self._inputs = self._qwen2_vl
        elif isinstance(self._family, LlavaVideo):
            # no class of transformers': its language model alone, on the video tokens that the engine makes
            self.system = "transformers, language model"
            self._inputs = self._llava_video
            with torch.device("meta"):
                self._generator = Qwen2ForCausalLM(subject.model.config.text)
            self._generator.model, self._generator.lm_head = subject.model.model, subject.model.lm_head
        else:
            raise TypeError(f"no dense comparator for {type(self._family).__name__}")
        # What a generation config leaves out, generate would take from the model's own: an end token, or sampling.
        self._generator.generation_config = GenerationConfig(pad_token_id=0)

    @torch.inference_mode()
    def __call__(self, videos: Sequence[np.ndarray], new_tokens: int) -> Measurement:
        """Answer greedily with exactly `new_tokens` tokens a video. Raises what torch raises for want of memory."""
        peak = PeakMemory(self._subject.device)
        watch = Stopwatch(self._subject.device)
        laps: list[float] = []  # before the language model's first forward, and before its second

        def note(*_: object) -> None:
            if len(laps) < 2:
                laps.append(watch.lap())

        generator = self._generator
        language_model = getattr(generator.model, "language_model", generator.model)
        hook = language_model.register_forward_pre_hook(note)
        try:
            inputs = self._inputs(videos)
            config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
            ids = generator.generate(**inputs, generation_config=config)
        finally:
            hook.remove()
        laps.append(watch.lap())
        prompt = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        if ids.shape != (len(videos), prompt + new_tokens):
            raise RuntimeError(f"generate returned {list(ids.shape)} tokens, not {new_tokens} for each video")
        vision_ms, prefill_ms, *decode = laps
        tokens = self._subject.tokens(videos[0].shape[0])
        peak_bytes = peak.peak_bytes()
        return Measurement(
            token_ids=ids[:, prompt:].tolist(),
            plans=[unpruned_plan(tokens, self._family.decoder.shape.layers)] * len(videos),
            segments=[None] * len(videos),
            text_tokens=self._family.tokenize("").length,
            vision_ms=vision_ms,
            prune_ms=None,
            prefill_ms=prefill_ms,
            decode_ms=sum(decode),
            total_ms=sum(laps),
            peak_mb=None if peak_bytes is None else peak_bytes / 2**20,
        )

    def _llava_onevision(self, videos: Sequence[np.ndarray]) -> dict[str, Any]:
        tokens = self._subject.tokens(videos[0].shape[0]) + 1  # and the newline after the video
        ids = self._prompt(len(videos), self._generator.config.video_token_index, tokens)
        return ids | {"pixel_values_videos": torch.stack([self._pixels(video) for video in videos])}

    def _qwen2_vl(self, videos: Sequence[np.ndarray]) -> dict[str, Any]:
        tokens = self._subject.tokens(videos[0].shape[0])
        config = self._generator.config
        inputs = self._prompt(len(videos), config.video_token_id, tokens)
        pixels = torch.stack([self._pixels(video) for video in videos])
        merge = config.vision_config.spatial_merge_size
        grid = [pixels.shape[1], pixels.shape[2] * merge, pixels.shape[3] * merge]
        kinds = 2 * (inputs["input_ids"] == config.video_token_id)  # transformers' number for video
        return inputs | {
            "pixel_values_videos": pixels.flatten(0, 4),
            "video_grid_thw": torch.tensor([grid] * len(videos), device=pixels.device),
            "mm_token_type_ids": kinds.to(torch.int32),
        }

    def _llava_video(self, videos: Sequence[np.ndarray]) -> dict[str, Any]:
        before, after = self._family.embed_prompt(self._family.tokenize(""))
        tokens = [video for video, _ in encode_videos(self._family, videos)]
        embeddings = torch.stack([torch.cat((before, video, after)) for video in tokens])
        mask = torch.ones(embeddings.shape[:2], dtype=torch.int64, device=embeddings.device)
        return {"inputs_embeds": embeddings, "attention_mask": mask}

    def _prompt(self, videos: int, place_holder: int, tokens: int) -> dict[str, Any]:
        """Token ids of the prompt around `tokens` place holders, once for each video."""
        prompt = self._family.tokenize("")
        row = [*prompt.before, *[place_holder] * tokens, *prompt.after]
        ids = torch.tensor([row] * videos, device=self._subject.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _pixels(self, video: np.ndarray) -> torch.Tensor:
        return self._family.preprocess(torch.from_numpy(video).to(self._subject.device))
