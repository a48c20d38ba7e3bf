"""The video tokens of a call's requests: each video through the vision tower once, or brought along encoded."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Several
from itertools import chain

import numpy as np
import torch

from pipeline.engine.encoded import EncodedVideo
from pipeline.engine.errors import EncodeError
from pipeline.engine.families import Family
from pipeline.engine.memory import is_out_of_memory
from pipeline.engine.sequence import Sequence
from pipeline.engine.stopwatch import Stopwatch, shares
from pipeline.engine.vision import encode_videos


class VideoEncoder:
    """Gives each sequence its video tokens; a video that several share stays as long as one of them waits for it."""

    def __init__(self, family: Family, with_attention: bool, patches: int) -> None:
        """`with_attention` if the pruner needs the encoder's; `patches` may enter the vision tower in one call."""
        self._family = family
        self._with_attention = with_attention
        self._patches = patches
        self._encoded: dict[str, EncodedVideo] = {}

    def encode(self, pack: Several[Sequence], waiting: Iterable[Sequence]) -> list[EncodedVideo]:
        """The videos of the pack's sequences, on the model's device.

        The time that a video takes is borne by those sequences of the pack and of the `waiting` ones
        that show it. Raises EncodeError if the vision tower fails.
        """
        new = {s.video: s.request.frames for s in pack if s.video not in self._encoded}
        brought = {video: frames for video, frames in new.items() if isinstance(frames, EncodedVideo)}
        raw = {video: frames for video, frames in new.items() if not isinstance(frames, EncodedVideo)}
        encoded = encode_frames(self._family, list(raw.values()), self._with_attention, self._patches)
        self._encoded |= dict(zip(raw, encoded, strict=True))
        self._encoded |= {video: self._bring(frames) for video, frames in brought.items()}
        if raw:
            self._divide_time(set(raw), chain(pack, waiting))
        return [self._encoded[sequence.video] for sequence in pack]

    def __contains__(self, video: str) -> bool:
        """Whether a video is here, encoded."""
        return video in self._encoded

    def retain(self, waiting: Iterable[Sequence]) -> None:
        """Free all videos but those of the `waiting` sequences."""
        wanted = {sequence.video for sequence in waiting}
        self._encoded = {video: tokens for video, tokens in self._encoded.items() if video in wanted}

    def _divide_time(self, videos: set[str], sequences: Iterable[Sequence]) -> None:
        users: dict[str, list[Sequence]] = {}
        for sequence in sequences:
            if sequence.video in videos:
                users.setdefault(sequence.video, []).append(sequence)
        for video, sharing in users.items():
            for sequence in sharing:
                sequence.vision_ms = self._encoded[video].vision_ms / len(sharing)

    def _bring(self, video: EncodedVideo) -> EncodedVideo:
        """A video of the caller's, as the model needs it; this call has spent no time on it."""
        decoder = self._family.decoder
        attention = video.attention if self._with_attention else None
        if attention is not None:
            attention = attention.to(decoder.device, torch.float32)
        tokens = video.tokens.to(decoder.device, decoder.dtype)
        return EncodedVideo(tokens, video.frames, attention, vision_ms=0.0, size=video.size)


def encode_frames(
    family: Family, videos: Several[np.ndarray | torch.Tensor], with_attention: bool, patches: int
) -> list[EncodedVideo]:
    """Run the vision tower over uint8 videos [T, H, W, 3]; EncodeError if it fails for want of anything but memory."""
    if not videos:
        return []
    watch = Stopwatch(family.decoder.device)
    try:
        encoded = encode_videos(family, videos, with_attention, patches)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise EncodeError(str(error)) from error
    times = shares(watch.lap(), [tokens.shape[0] for tokens, _ in encoded])
    return [
        EncodedVideo(tokens, int(frames.shape[0]), attention, ms, (int(frames.shape[1]), int(frames.shape[2])))
        for frames, (tokens, attention), ms in zip(videos, encoded, times, strict=True)
    ]
