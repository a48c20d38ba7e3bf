"""The video tokens of a call's requests: each video through the vision tower once, or brought along encoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.engine.encoded import EncodedVideo
from pipeline.engine.errors import EncodeError
from pipeline.engine.families import Family
from pipeline.engine.sequence import Sequence
from pipeline.engine.stopwatch import Stopwatch, shares
from pipeline.engine.vision import encode_videos


@dataclass(eq=False)
class _Waiting:
    """A video, and how many prompts still want it."""

    video: EncodedVideo
    prompts: int


class VideoEncoder:
    """Gives each sequence its video tokens; a video that several share stays until the last one had it."""

    def __init__(self, family: Family, sequences: Several[Sequence], with_attention: bool) -> None:
        """`sequences` are all those of a call; `with_attention` if the pruner needs the encoder's attention.

        Raises ValueError if two of them call different videos by the same video_key.
        """
        self._family = family
        self._with_attention = with_attention
        self._users = Counter(sequence.video for sequence in sequences)
        self._encoded: dict[str, _Waiting] = {}
        _check_shared_videos(sequences)

    def encode(self, pack: Several[Sequence]) -> list[EncodedVideo]:
        """The videos of the pack's sequences, on the model's device; notes the time that each answer has to bear."""
        new = {s.video: s.request.frames for s in pack if s.video not in self._encoded}
        brought = {video: frames for video, frames in new.items() if isinstance(frames, EncodedVideo)}
        raw = {video: frames for video, frames in new.items() if not isinstance(frames, EncodedVideo)}
        encoded = encode_frames(self._family, list(raw.values()), self._with_attention)
        for video, entry in zip(raw, encoded, strict=True):
            self._encoded[video] = _Waiting(entry, self._users[video])
        for video, entry in brought.items():
            self._encoded[video] = _Waiting(self._bring(entry), self._users[video])
        videos: list[EncodedVideo] = []
        for sequence in pack:
            waiting = self._encoded[sequence.video]
            sequence.vision_ms = waiting.video.vision_ms / self._users[sequence.video]
            videos.append(waiting.video)
            waiting.prompts -= 1
            if not waiting.prompts:
                del self._encoded[sequence.video]
        return videos

    def _bring(self, video: EncodedVideo) -> EncodedVideo:
        """A video of the caller's, as the model needs it; this call has spent no time on it."""
        decoder = self._family.decoder
        attention = video.attention if self._with_attention else None
        if attention is not None:
            attention = attention.to(decoder.device, torch.float32)
        tokens = video.tokens.to(decoder.device, decoder.dtype)
        return EncodedVideo(tokens, video.frames, attention, vision_ms=0.0, size=video.size)


def encode_frames(
    family: Family, videos: Several[np.ndarray | torch.Tensor], with_attention: bool
) -> list[EncodedVideo]:
    """Run the vision tower over uint8 videos [T, H, W, 3]; EncodeError if it fails for want of anything but memory."""
    if not videos:
        return []
    watch = Stopwatch(family.decoder.device)
    try:
        encoded = encode_videos(family, videos, with_attention)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise EncodeError(str(error)) from error
    times = shares(watch.lap(), [tokens.shape[0] for tokens, _ in encoded])
    return [
        EncodedVideo(tokens, int(frames.shape[0]), attention, ms, (int(frames.shape[1]), int(frames.shape[2])))
        for frames, (tokens, attention), ms in zip(videos, encoded, times, strict=True)
    ]


def _check_shared_videos(sequences: Several[Sequence]) -> None:
    first: dict[str, Sequence] = {}
    for sequence in sequences:
        other = first.setdefault(sequence.video, sequence)
        if _shape(sequence) != _shape(other):
            raise ValueError(
                f"request {sequence.number}: video_key {sequence.request.video_key!r} stands for frames "
                f"of another shape in request {other.number}"
            )


def _shape(sequence: Sequence) -> tuple[int, ...]:
    frames = sequence.request.frames
    return tuple(frames.tokens.shape if isinstance(frames, EncodedVideo) else frames.shape)
