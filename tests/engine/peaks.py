"""Measures peaks of answers in a process of its own, whose memory nothing else uses: prints one line a case.

Each line is: frames, retention, measured peak in bytes beside weights and libraries, predicted peak.
"""

import dataclasses
import gc
import sys

import torch

from pipeline.engine import Request, VideoLLM
from pipeline.engine.encoded import EncodedVideo
from pipeline.engine.host_memory import resident_bytes
from pipeline.engine.memory import MemoryPlan, PeakMemory
from pruning import PruningConfig, make_pruner

POSITIONS = 196
NEW_TOKENS = 8


def video(llm, num_frames):
    """A video in four scenes of noisy repeats, as if the vision tower had made its tokens."""
    hidden = llm.shape.hidden
    generator = torch.Generator().manual_seed(num_frames)
    tokens = torch.empty(num_frames, POSITIONS, hidden)
    for frame in range(num_frames):
        if frame % -(-num_frames // 4) == 0:
            scene = torch.randn(POSITIONS, hidden, generator=generator)
        torch.add(scene, torch.randn(POSITIONS, hidden, generator=generator), alpha=0.5, out=tokens[frame])
    return EncodedVideo(tokens.flatten(0, 1), num_frames)


def measure(llm, num_frames, retention):
    pruning = PruningConfig(retention=retention, max_block=1024)
    request = Request(frames=video(llm, num_frames), prompt="hi", max_new_tokens=NEW_TOKENS)
    plan = make_pruner(llm.resolve(pruning)).plan(llm.grid(num_frames), llm.shape.layers, retention)
    # The tower does not run here; the video's tokens are its output and count as the engine's.
    memory = dataclasses.replace(MemoryPlan.of(llm._family.decoder), patches=0)
    predicted = memory.sequence_peak_bytes(plan, llm.prompt_tokens("hi"), NEW_TOKENS)
    gc.collect()
    before = resident_bytes() - request.frames.tokens.nbytes
    peak = PeakMemory(torch.device("cpu"))
    llm.answer([request], pruning)
    print(num_frames, retention, peak.peak_bytes() - before, predicted, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    model = VideoLLM.load(sys.argv[1], device="cpu", dtype="float32")
    model.answer([Request(frames=video(model, 2), prompt="hi", max_new_tokens=2)], PruningConfig(retention=0.5))
    for case in sys.argv[2:]:
        frames, share = case.split(":")
        measure(model, int(frames), float(share))
