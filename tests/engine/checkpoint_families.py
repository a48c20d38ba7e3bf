"""A small random checkpoint of every model family, for tests that hold for all of them."""

from collections.abc import Callable
from pathlib import Path

from tests.engine import checkpoints, checkpoints_llava_video, checkpoints_qwen2_vl

# Each writes a whole folder in the family's published layout, its weights in one file.
WRITERS: dict[str, Callable[[Path], Path]] = {
    "llava-onevision": lambda folder: checkpoints.write_checkpoint(folder, checkpoints.Shape()),
    "llava-video": lambda folder: checkpoints_llava_video.write_checkpoint(
        folder, checkpoints_llava_video.Shape(num_files=1)
    ),
    "qwen2-vl": lambda folder: checkpoints_qwen2_vl.write_checkpoint(folder, checkpoints_qwen2_vl.Shape()),
}
