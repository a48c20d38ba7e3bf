from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engine import VideoLLM
from pipeline.evaluate.clips import encode_clips, feature_folder
from pipeline.tiny.world import VALIDATION_SEEDS


@pytest.fixture(scope="session")
def llm() -> VideoLLM:
    return VideoLLM.load("builtin:tiny", device="cpu")


@pytest.fixture(scope="session")
def clip_cache(llm: VideoLLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the first three validation clips, rendered and encoded."""
    cache = tmp_path_factory.mktemp("clips")
    encode_clips(llm, VALIDATION_SEEDS[:3], cache, feature_folder(cache, llm.info))
    return cache
