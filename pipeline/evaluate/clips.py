"""Clips of the built-in world as the evaluation meets them: rendered, decoded and encoded once, then kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.engine import EncodedVideo, ModelInfo, VideoLLM
from pipeline.tiny.clips import QUESTIONS_PER_CLIP, clip_questions, write_video
from pipeline.tiny.language import Question, caption
from pipeline.tiny.world import SEED_RANGES, SLOTS, make_clip
from pipeline.video.decode import decode_frames
from pipeline.video.sampling import Sampling

_ROOT = Path(__file__).resolve().parents[2]
# What stands between a video file and its tokens, besides the model itself.
_ENCODING_SOURCES = (
    "pipeline/video",
    "pipeline/engine/families",
    "pipeline/engine/preprocess.py",
    "pipeline/frame_size.py",
    "pipeline/resize.py",
)
_CLIPS_AT_ONCE = 8


@dataclass(frozen=True)
class ClipRange:
    """Clips `first` … `first + count` of a split, each with its first `questions` questions."""

    split: str
    first: int
    count: int
    questions: int = QUESTIONS_PER_CLIP

    @property
    def seeds(self) -> range:
        """The clips' seeds."""
        return SEED_RANGES[self.split][self.first : self.first + self.count]


@dataclass(frozen=True)
class EncodedClip:
    """A clip as the language model meets it, with what it is asked and the truth."""

    seed: int
    questions: tuple[Question, ...]
    reference: str
    video: EncodedVideo


def clip_truth(seed: int, questions: int) -> tuple[tuple[Question, ...], str]:
    """The first questions of a clip with their answers, and its reference caption."""
    clip = make_clip(seed)
    return tuple(clip_questions(clip)[:questions]), caption(clip.scenes)


def feature_folder(cache: Path, model: ModelInfo) -> Path:
    """Where a model's encoded clips lie: another model, type or way of reading videos has another folder."""
    return cache / "features" / f"{model.model_hash[:12]}-{model.dtype}-{source_hash(_ENCODING_SOURCES)[:8]}"


def source_hash(paths: Sequence[str]) -> str:
    """sha256 (hex) over the Python files at or under `paths`, which are relative to the repository."""
    digest = hashlib.sha256()
    for name in paths:
        path = _ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(str(file.relative_to(_ROOT)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def missing_clips(seeds: Sequence[int], folder: Path) -> list[int]:
    """Those of `seeds` that are not encoded yet."""
    return [seed for seed in seeds if not _feature_file(folder, seed).exists()]


def encode_clips(llm: VideoLLM, seeds: Sequence[int], cache: Path, folder: Path) -> None:
    """Render (into `cache`), decode and encode clips, and write their tokens and encoder attention to `folder`.

    Files are written whole or not at all, so that several processes may share the folders.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(seeds), _CLIPS_AT_ONCE):
        part = seeds[start : start + _CLIPS_AT_ONCE]
        frames = [decode_frames(_rendered(seed, cache), Sampling(SLOTS, "uniform")).frames for seed in part]
        for seed, video in zip(part, llm.encode(frames, attention=True), strict=True):
            _write(video, _feature_file(folder, seed))


def load_clip(seed: int, questions: int, folder: Path) -> EncodedClip:
    """An encoded clip with its first questions, on the CPU."""
    asked, reference = clip_truth(seed, questions)
    return EncodedClip(seed, asked, reference, _read(_feature_file(folder, seed)))


def _feature_file(folder: Path, seed: int) -> Path:
    return folder / f"{seed}.safetensors"


def _rendered(seed: int, cache: Path) -> Path:
    path = cache / f"{seed}.mp4"
    if not path.exists():
        # Another process may render the same clip: each under a name of its own, the last one stays.
        own = cache / f"{seed}.{os.getpid()}.mp4"
        write_video(make_clip(seed), own)
        own.replace(path)
    return path


def _write(video: EncodedVideo, path: Path) -> None:
    if video.attention is None:
        raise ValueError("the encoder's attention is kept with the tokens, but the engine gave none")
    tensors = {"tokens": video.tokens.cpu().contiguous(), "attention": video.attention.cpu().contiguous()}
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file(tensors, partial, {"frames": str(video.frames), "vision_ms": repr(video.vision_ms)})
    partial.replace(path)


def _read(path: Path) -> EncodedVideo:
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
        return EncodedVideo(
            tokens=file.get_tensor("tokens"),
            frames=int(facts["frames"]),
            attention=file.get_tensor("attention"),
            vision_ms=float(facts["vision_ms"]),
        )
