"""The two stages that need state in an actor: Decoder and Answerer.

Both take and return Arrow tables of `stages_tables`. A process imports what its stage needs: the
decoder no torch, the answerer no decord.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.errors import RowError
from pipeline.results import blank_row, error_row, parse_option
from pipeline.stages_tables import DECODED_SCHEMA, MEASURED, PLAIN_COLUMNS, pack_answers
from pipeline.storage import fetch_video

if TYPE_CHECKING:
    from pipeline.engine import Answer, ModelInfo, Request
    from pruning import PruningConfig

FIRST_BACKOFF_S = 0.5  # before the second attempt; doubled before each further one


class Engine(Protocol):
    """What an answerer needs of a VideoLLM."""

    info: ModelInfo

    def answer(self, requests: Sequence[Request], pruning: PruningConfig) -> list[Answer]:
        """Answer requests of any frame counts, in order."""


class Decoder:
    """Groups in (GROUP_SCHEMA), frames out (DECODED_SCHEMA). A video that fails carries its error on."""

    def __init__(self, frames: int, retries: int) -> None:
        """`frames` for groups that do not say; `retries` further attempts at a fetch that failed."""
        self.frames = frames
        self.retries = retries

    def __call__(self, groups: pa.Table) -> pa.Table:
        """Decode each group of the batch; the pipeline sends one at a time, so that frames leave at once."""
        return pa.concat_tables([self._decode(groups.slice(i, 1)) for i in range(groups.num_rows)])

    def _decode(self, row: pa.Table) -> pa.Table:
        group = row.drop_columns("items").to_pylist()[0]
        measured: dict[str, Any] = {"started_at": datetime.now(UTC)}
        pixels = error = None
        try:
            pixels = self._fetch_and_decode(group, measured)
        except RowError as failure:
            error = {"stage": failure.stage, "code": failure.code, "message": failure.message}
        measured |= {"shard": group["shard"], "group": group["group"], "error": error, "decoded_at": datetime.now(UTC)}
        measured["shape"] = None if pixels is None else list(pixels.shape)
        columns = {name: pa.array([measured.get(name)], DECODED_SCHEMA.field(name).type) for name in PLAIN_COLUMNS}
        columns["items"] = row["items"]
        columns["pixels"] = _as_binary(pixels)
        return pa.table([columns[name] for name in DECODED_SCHEMA.names], schema=DECODED_SCHEMA)

    def _fetch_and_decode(self, group: dict[str, Any], measured: dict[str, Any]) -> np.ndarray:
        """uint8 [T, H, W, 3]; what is known at a failure is already in `measured`."""
        from pipeline.video import decode_frames  # decord and PyAV: in the decoding processes only

        with tempfile.TemporaryDirectory(prefix="hieravid-") as folder:
            started = time.perf_counter()
            try:
                path = self._fetch(group["uri"], Path(folder), measured)
            finally:
                measured["fetch_ms"] = _milliseconds_since(started)
            started = time.perf_counter()
            try:
                video = decode_frames(path, group["frames"] or self.frames, group["start_s"], group["end_s"])
            finally:
                measured["decode_ms"] = _milliseconds_since(started)
        measured |= asdict(video.info)
        measured |= {"decode_backend": video.backend, "frame_times_s": video.frame_times_s}
        return video.frames

    def _fetch(self, uri: str, folder: Path, measured: dict[str, Any]) -> Path:
        for attempt in range(1, self.retries + 2):
            measured["attempts"] = attempt
            try:
                path, measured["bytes_fetched"] = fetch_video(uri, folder)
                return path
            except RowError as failure:
                # Not found and forbidden will be so the next time as well.
                if failure.code != "fetch_failed" or attempt > self.retries:
                    raise
            time.sleep(FIRST_BACKOFF_S * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")


class Answerer:
    """Frames in (DECODED_SCHEMA), one result row for each item out (ANSWER), failed or not."""

    def __init__(self, load: Callable[[], Engine], pruning: PruningConfig, sampling: dict[str, Any]) -> None:
        """`load` gets the model in the actor; `sampling` holds Request's max_new_tokens, temperature, top_p, seed."""
        self.engine = load()
        self.pruning = pruning
        self.sampling = sampling
        info = self.engine.info
        self.provenance = {
            "model": info.name,
            "model_hash": info.model_hash,
            "dtype": info.dtype,
            "device": info.device,
            "host": socket.gethostname(),
        }

    def __call__(self, videos: pa.Table) -> pa.Table:
        """Answer every item of every video of the batch, all of them in one call of the engine."""
        begun = datetime.now(UTC)
        pixels = videos["pixels"]
        groups = videos.drop_columns("pixels").to_pylist()
        rows: list[dict[str, Any]] = []
        asked: list[tuple[dict[str, Any], dict[str, Any]]] = []
        requests: list[Request] = []
        for group, binary in zip(groups, pixels, strict=True):
            if group["error"] is not None:
                error = RowError(**group["error"])
                rows += [self._failed(group, item, error, group["attempts"]) for item in group["items"]]
                continue
            frames = np.frombuffer(binary.as_buffer(), np.uint8).reshape(group["shape"])
            for item in group["items"]:
                asked.append((group, item))
                requests.append(self._request(group, item, frames))
        for (group, item), (outcome, tries) in zip(asked, answer_all(self.engine, requests, self.pruning), strict=True):
            attempts = group["attempts"] + tries - 1
            if isinstance(outcome, RowError):
                row = self._failed(group, item, outcome, attempts)
            else:
                row = self._answered(group, item, outcome, attempts)
            row["frames"] = group["shape"][0]
            row["wait_ms"] = max(0.0, (begun - group["decoded_at"]).total_seconds() * 1e3)
            rows.append(row)
        return pack_answers(rows)

    def _request(self, group: dict[str, Any], item: dict[str, Any], frames: np.ndarray) -> Request:
        from pipeline.engine import Request

        chosen = dict(self.sampling)
        if item["max_new_tokens"] is not None:
            chosen["max_new_tokens"] = item["max_new_tokens"]
        return Request(
            frames=frames,
            prompt=item["prompt"],
            frame_times_s=group["frame_times_s"],
            video_key=group["group"],
            retention=item["retention"],
            **chosen,
        )

    def _answered(self, group: dict[str, Any], item: dict[str, Any], answer: Answer, attempts: int) -> dict[str, Any]:
        row = blank_row(item["item_id"]) | self._measured(group) | asdict(answer.stats)
        return row | {
            "status": "ok",
            "answer": answer.text,
            "answer_option": parse_option(answer.text, item["options"]),
            "finish_reason": answer.finish_reason,
            "attempts": attempts,
        }

    def _failed(self, group: dict[str, Any], item: dict[str, Any], error: RowError, attempts: int) -> dict[str, Any]:
        return error_row(item["item_id"], error, attempts) | self._measured(group)

    def _measured(self, group: dict[str, Any]) -> dict[str, Any]:
        """What decoder and actor know of every row. Stage times are shares: each item bears its part of the group's."""
        finished = datetime.now(UTC)
        row = {name: group[name] for name, _ in MEASURED if name != "attempts"}
        for name in ("fetch_ms", "decode_ms"):
            if row[name] is not None:
                row[name] /= len(group["items"])
        total_ms = (finished - group["started_at"]).total_seconds() * 1e3
        return row | self.provenance | {"shard": group["shard"], "finished_at": finished, "total_ms": total_ms}


def load_engine(source: str, device: str, dtype: str, threads: int) -> Engine:
    """The VideoLLM of `source`, with `threads` cores for what it does on the CPU. Raises ModelError."""
    import torch

    from pipeline.engine import VideoLLM

    torch.set_num_threads(min(threads, len(os.sched_getaffinity(0))))
    return VideoLLM.load(source, device=device, dtype=dtype)


def answer_all(
    engine: Engine, requests: Sequence[Request], pruning: PruningConfig, tries: int = 1
) -> list[tuple[Answer | RowError, int]]:
    """Each request's answer or error, in order, with the number of calls it took part in.

    When a call fails its requests are answered again in halves, down to one at a time: a request
    that cannot be answered costs itself and no other, and one that needs all memory gets all of it.
    """
    if not requests:
        return []
    try:
        return [(answer, tries) for answer in engine.answer(requests, pruning)]
    except Exception as error:  # whatever it is: one video must not end a job of many
        failure = _as_row_error(error)
    if failure.code == "out_of_memory":
        _free_device_memory()  # here: inside the except clause the traceback still holds the tensors
    if len(requests) == 1:
        return [(failure, tries)]
    half = (len(requests) + 1) // 2
    return [
        *answer_all(engine, requests[:half], pruning, tries + 1),
        *answer_all(engine, requests[half:], pruning, tries + 1),
    ]


def _as_row_error(error: Exception) -> RowError:
    import torch

    from pipeline.engine import EncodeError, PromptTooLongError
    from pruning import UnreachableRetentionError

    stage, code = "generate", "generate_failed"
    if isinstance(error, PromptTooLongError):
        code = "prompt_too_long"
    elif isinstance(error, UnreachableRetentionError):
        code = "retention_unreachable"
    elif isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        code = "out_of_memory"  # on a CPU torch says so in a RuntimeError
    elif isinstance(error, EncodeError):
        stage, code = "encode", "encode_failed"
    told = str(error).removeprefix("request 0: ")  # the engine's number within the call, not the row's
    return RowError(stage, code, f"{type(error).__name__}: {told}")


def _free_device_memory() -> None:
    import torch

    torch.cuda.empty_cache()  # does nothing without CUDA


def _as_binary(pixels: np.ndarray | None) -> pa.Array:
    """One binary value over the array's own memory, or one null."""
    if pixels is None:
        return pa.nulls(1, pa.large_binary())
    offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    data = pa.py_buffer(np.ascontiguousarray(pixels).reshape(-1))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, data])


def _milliseconds_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
