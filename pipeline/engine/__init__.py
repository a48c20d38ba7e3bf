"""The VideoLLM engine: models from local folders, pruned prefill, batched decoding, statistics.

It needs torch, transformers, numpy and safetensors, and neither a cluster nor a video decoder.
"""

from pipeline.engine import quiet_imports  # noqa: F401  # before transformers

# isort: split
from pipeline.engine.encoded import EncodedVideo
from pipeline.engine.errors import EncodeError, ModelError, PromptTooLongError
from pipeline.engine.info import ModelInfo, model_info
from pipeline.engine.llm import VideoLLM
from pipeline.engine.request import Answer, AnswerStats, Failure, FailureCode, Request
from pipeline.engine.trace import TokenTrace

__all__ = [
    "Answer",
    "AnswerStats",
    "EncodeError",
    "EncodedVideo",
    "Failure",
    "FailureCode",
    "ModelError",
    "ModelInfo",
    "PromptTooLongError",
    "Request",
    "TokenTrace",
    "VideoLLM",
    "model_info",
]
