"""One video file becomes frames: probe it, choose timestamps, decode. No model, no cluster."""

from pipeline.video.decode import DecodedVideo, decode_frames
from pipeline.video.probe import VideoInfo, probe

__all__ = ["DecodedVideo", "VideoInfo", "decode_frames", "probe"]
