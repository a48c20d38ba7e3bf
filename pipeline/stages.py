"""The two stages that need state in an actor: Decoder and Answerer.

Both take and return Arrow tables of `stages_tables`. A process imports what its stage needs: the
decoder no torch, the answerer no decord.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.answer_stream import AnswerStream, Engine
from pipeline.errors import RowError
from pipeline.results import blank_row, error_row, parse_option
from pipeline.stages_tables import DECODED_SCHEMA, MEASURED, PLAIN_COLUMNS, pack_answers
from pipeline.storage import fetch_video

if TYPE_CHECKING:
    from pipeline.engine import Answer, Request
    from pruning import PruningConfig

FIRST_BACKOFF_S = 0.5  # before the second attempt; doubled before each further one


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
        """`load` gets the model in the actor; `sampling` holds what Request takes from the job's `generation`."""
        engine = load()
        self.stream = AnswerStream(engine, pruning)
        self.sampling = sampling
        info = engine.info
        self.provenance = {
            "model": info.name,
            "model_hash": info.model_hash,
            "dtype": info.dtype,
            "quantization": info.quantization,
            "device": info.device,
            "host": socket.gethostname(),
        }

    def __call__(self, videos: pa.Table) -> pa.Table:
        """Answer every item of every video of the batch. Calls in several threads are answered together."""
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
        for (group, item), outcome in zip(asked, self.stream.answer(requests), strict=True):
            attempts = group["attempts"] + outcome.attempts - 1
            if isinstance(outcome.result, RowError):
                row = self._failed(group, item, outcome.result, attempts)
            else:
                row = self._answered(group, item, outcome.result, attempts)
            row["frames"] = group["shape"][0]
            row["wait_ms"] = max(0.0, (outcome.begun_at - group["decoded_at"]).total_seconds() * 1e3)
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
            duration_s=group["duration_s"],
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


def _as_binary(pixels: np.ndarray | None) -> pa.Array:
    """One binary value over the array's own memory, or one null."""
    if pixels is None:
        return pa.nulls(1, pa.large_binary())
    offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    data = pa.py_buffer(np.ascontiguousarray(pixels).reshape(-1))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, data])


def _milliseconds_since(started: float) -> float:
    return (time.perf_counter() - started) * 1e3
