"""What a model is calibrated on: clips of the built-in world, or any videos with prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pipeline.config import DEFAULT_CAPTION_PROMPT
from pipeline.engine import EncodedVideo, ModelInfo, VideoLLM
from pipeline.errors import RowError, UserError
from pipeline.evaluate.clips import encode_clips, feature_folder, load_clip, missing_clips
from pipeline.evaluate.reproduction import Sample
from pipeline.manifest import open_manifest
from pipeline.prompts import with_options
from pipeline.staging import Asking, stage
from pipeline.storage import fetch_video
from pipeline.tiny.world import SEED_RANGES
from pipeline.uris import without_secrets
from pipeline.video.file import LocalFile
from pipeline.video.reader import VideoReader
from pipeline.video.sampling import Sampling


@dataclass(frozen=True)
class BuiltinClips:
    """Clips `first` … `first + count` of a split of the built-in world, with the caption prompt and their questions."""

    split: str
    first: int
    count: int
    cache: Path
    questions: int = 3

    @property
    def name(self) -> str:
        """What they are, for the evidence."""
        return f"built-in world, {self.split} clips {self.first} to {self.first + self.count - 1}"

    def load(self, llm: VideoLLM, part: int, parts: int) -> list[Sample]:
        """The samples of one of `parts` equal parts; clips that are not there yet are rendered and encoded first."""
        seeds = SEED_RANGES[self.split][self.first : self.first + self.count][part::parts]
        folder = feature_folder(self.cache, llm.info)
        self.cache.mkdir(parents=True, exist_ok=True)
        encode_clips(llm, missing_clips(seeds, folder), self.cache, folder)
        clips = [load_clip(seed, self.questions, folder) for seed in seeds]
        return [
            Sample(clip.video, (DEFAULT_CAPTION_PROMPT, *(with_options(q.text, q.options) for q in clip.questions)))
            for clip in clips
        ]


@dataclass(frozen=True)
class Video:
    """A video of a manifest, the part of it that is shown, and what is asked about it."""

    uri: str
    start_s: float | None
    end_s: float | None
    frames: int | None
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class ManifestVideos:
    """Videos named by a manifest; those that cannot be read are left out."""

    name: str
    videos: tuple[Video, ...]

    def load(self, llm: VideoLLM, part: int, parts: int) -> list[Sample]:
        """The samples of one of `parts` equal parts. Raises UserError if none of its videos can be read."""
        samples, failures = [], []
        with VideoReader() as reader:
            for video in self.videos[part::parts]:
                try:
                    frames = _read(reader, video, llm.info)
                except RowError as error:
                    failures.append(f"{video.uri}: {error}")
                    continue
                samples.append(Sample(_on_cpu(llm.encode([frames])[0]), video.prompts))
        if not samples:
            raise UserError(f"no video of {self.name} can be read; {failures[0] if failures else 'there are too few'}")
        return samples


def manifest_videos(manifest: str, count: int, prompt: str = DEFAULT_CAPTION_PROMPT) -> ManifestVideos:
    """The first `count` videos of a manifest (a file, folder or glob as a job takes it).

    A row's own question or prompt is asked, with its options; `prompt` where it has none. The
    amounts that rows override are not read. Raises UserError as a job would.
    """
    if without_secrets(manifest) != manifest:  # it is named in the file
        raise UserError("the manifest's uri carries credentials or a signature: use the environment")
    with TemporaryDirectory(prefix="hieravid-calibrate-") as scratch:
        asking = Asking("qa", prompt, fingerprint="")
        staged = stage(open_manifest(manifest, Path(scratch)), asking, [], Path(scratch, "rows.arrow"))
        order, ends = staged.order()
        rows = staged.take(np.asarray(order[: ends[:count][-1] if len(ends) else 0])).to_pylist() if len(staged) else []
    videos = tuple(_grouped(rows))
    if not videos:
        raise UserError(f"the manifest {manifest} has no row that can be used")
    return ManifestVideos(manifest, videos)


def _grouped(rows: list[dict[str, Any]]) -> Iterator[Video]:
    """One video for all adjacent rows that show the same."""
    shown: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["error_code"] is None:
            shown.setdefault(row["group"], []).append(row)
    for group in shown.values():
        first = group[0]
        prompts = tuple(dict.fromkeys(row["prompt"] for row in group))
        yield Video(first["uri"], first["start_s"], first["end_s"], first["frames"], prompts)


def _read(reader: VideoReader, video: Video, model: ModelInfo) -> np.ndarray:
    """uint8 [T, H, W, 3] at the size that the model looks at."""
    sampling = Sampling(video.frames or model.default_frames, "uniform", start_s=video.start_s, end_s=video.end_s)
    with TemporaryDirectory(prefix="hieravid-calibrate-") as folder:
        path, _ = fetch_video(video.uri, Path(folder))
        return reader.read(LocalFile(path), sampling, model.frame_size).video.frames


def _on_cpu(video: EncodedVideo) -> EncodedVideo:
    """A GPU's memory belongs to the answers."""
    return replace(video, tokens=video.tokens.cpu())
