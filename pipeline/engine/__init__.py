"""The VideoLLM engine: models from local folders, pruned prefill, batched decoding, statistics.

It needs torch, transformers, numpy and safetensors, and neither a cluster nor a video decoder.
"""

from pipeline.engine.errors import EncodeError, ModelError, PromptTooLongError
from pipeline.engine.info import ModelInfo, model_info
from pipeline.engine.llm import VideoLLM
from pipeline.engine.request import Answer, AnswerStats, Request

__all__ = [
    "Answer",
    "AnswerStats",
    "EncodeError",
    "ModelError",
    "ModelInfo",
    "PromptTooLongError",
    "Request",
    "VideoLLM",
    "model_info",
]
