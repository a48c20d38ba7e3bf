"""The two stages that need state in an actor: Decoder and Answerer.

Both take and return Arrow tables of `stages_tables`. A process imports what its stage needs: the
answerer no video library, and the decoder neither torch nor a video library, which its children load.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from queue import LifoQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.answer_stream import AnswerStream, Engine
from pipeline.attempts import Attempts
from pipeline.budget.uneven import Uneven
from pipeline.errors import RowError
from pipeline.frame_size import FrameSize
from pipeline.remote_file import FileChanged, RemoteFile
from pipeline.results import blank_row, error_row, parse_option
from pipeline.row_samples import RowSamples
from pipeline.stages_tables import DECODED_SCHEMA, MEASURED, PLAIN_COLUMNS, pack_answers
from pipeline.storage import fetch_errors, local_path
from pipeline.suspects import Suspects, WorkerDied
from pipeline.video.file import LocalFile
from pipeline.video.limits import Limits
from pipeline.video.reader import VideoReader
from pipeline.video.sampling import Backend, Sampling

if TYPE_CHECKING:
    from pipeline.engine import Answer, Request
    from pipeline.video.decode import DecodedVideo
    from pruning import PruningConfig

VIDEOS_AT_ONCE = 2  # in work at one decoder: bytes of the next video arrive while one is decoded


class Decoder:
    """Groups in (GROUP_SCHEMA), frames out (DECODED_SCHEMA). A video that fails carries its error on.

    Calls may come in `VIDEOS_AT_ONCE` threads. Each reads its video through a child process; one of them decodes at
    a time, so that a decoder takes one core.
    """

    def __init__(
        self,
        sampling: Sampling,
        limits: Limits,
        frame_size: FrameSize | None = None,
        backend: Backend = "auto",
        retries: int = 0,
        attempts: Attempts | None = None,
    ) -> None:
        """`sampling` for groups that do not say; `retries` further attempts at a fetch that failed.

        `limits` bound each child. Frames are scaled to `frame_size`; None leaves them as they are.
        `attempts` tells of groups that this process's like has died of; they too get `retries` further attempts.
        """
        self.sampling = sampling
        self.frame_size = frame_size
        self.backend = backend
        self.retries = retries
        self._suspects = Suspects("decode", attempts, retries)
        permit = threading.Lock()
        self._readers = [VideoReader(limits, permit) for _ in range(VIDEOS_AT_ONCE)]
        # Last in, first out: where calls come one by one, one child serves them all. That one gets ready while the
        # model loads; a second one would only take time from it.
        self._idle: LifoQueue[VideoReader] = LifoQueue()
        for reader in self._readers:
            self._idle.put(reader)
        self._readers[-1].start(is_scaling=frame_size is not None)

    def __call__(self, groups: pa.Table) -> pa.Table:
        """Decode each group of the batch; the pipeline sends one at a time, so that frames leave at once."""
        return pa.concat_tables([self._decode(groups.slice(i, 1)) for i in range(groups.num_rows)])

    def close(self) -> None:
        """End the child processes."""
        for reader in self._readers:
            reader.close()

    def __del__(self) -> None:
        """Ray drops the instance when its actor ends."""
        if hasattr(self, "_readers"):
            self.close()

    def _decode(self, row: pa.Table) -> pa.Table:
        group = row.drop_columns("items").to_pylist()[0]
        measured: dict[str, Any] = {"started_at": datetime.now(UTC), "attempts": 1}
        pixels = error = None
        try:
            with self._suspects.attempt(group["shard"], group["group"]) as deaths:
                try:
                    pixels = self._fetch_and_decode(group, measured)
                finally:
                    measured["attempts"] += deaths
        except RowError as failure:
            error = {"stage": failure.stage, "code": failure.code, "message": failure.message}
            if isinstance(failure, WorkerDied):
                measured["attempts"] = failure.deaths
        measured |= {"shard": group["shard"], "group": group["group"], "error": error, "decoded_at": datetime.now(UTC)}
        measured["shape"] = None if pixels is None else list(pixels.shape)
        columns = {name: pa.array([measured.get(name)], DECODED_SCHEMA.field(name).type) for name in PLAIN_COLUMNS}
        columns["items"] = row["items"]
        columns["pixels"] = _as_binary(pixels)
        return pa.table([columns[name] for name in DECODED_SCHEMA.names], schema=DECODED_SCHEMA)

    def _fetch_and_decode(self, group: dict[str, Any], measured: dict[str, Any]) -> np.ndarray:
        """uint8 [T, H, W, 3]; what is known at a failure is already in `measured`."""
        sampling = replace(
            self.sampling,
            frames=group["frames"] or self.sampling.frames,
            start_s=group["start_s"],
            end_s=group["end_s"],
        )
        reader = self._idle.get()
        try:
            with self._open(group["uri"], measured) as file:
                video = self._read(reader, file, sampling, measured)
        finally:
            self._idle.put(reader)
        measured |= asdict(video.info)
        measured |= {"decode_backend": video.backend, "frame_times_s": video.frame_times_s}
        return video.frames

    @contextmanager
    def _open(self, uri: str, measured: dict[str, Any]) -> Iterator[LocalFile | RemoteFile]:
        """The file at `uri`; what it took to fetch is in `measured` afterwards, also when it failed."""
        path = local_path(uri)
        if path is not None:
            with fetch_errors(uri):
                open(path, "rb", opener=_open_at_once).close()
                file = LocalFile(path)
            measured["bytes_fetched"] = file.size
            yield file
            return
        # The bytes take space there and no name: nothing is left, however this process ends.
        with RemoteFile(uri, self.retries, Path(tempfile.gettempdir())) as remote:
            try:
                yield remote
            finally:
                measured["attempts"] = max(1, remote.attempts)
                measured["bytes_fetched"] = remote.bytes_fetched or None

    def _read(
        self, reader: VideoReader, file: LocalFile | RemoteFile, sampling: Sampling, measured: dict[str, Any]
    ) -> DecodedVideo:
        try:
            try:
                read = reader.read(file, sampling, self.frame_size, self.backend)
            except FileChanged:  # raised once for a file: the second time it is another error
                read = reader.read(file, sampling, self.frame_size, self.backend)
        finally:
            times = reader.times
            measured["fetch_ms"] = times.fetch_s * 1e3
            # What did not begin was not measured.
            measured["decode_ms"] = (times.open_s + times.decode_s) * 1e3 or None
            measured["decode_cpu_ms"] = times.cpu_s * 1e3 or None
        return read.video


class Answerer:
    """Frames in (DECODED_SCHEMA), one result row for each item out (ANSWER), failed or not."""

    def __init__(
        self,
        load: Callable[[], Engine],
        pruning: PruningConfig,
        sampling: dict[str, Any],
        retries: int = 0,
        attempts: Attempts | None = None,
        retention: Callable[[], float] | None = None,
        samples: RowSamples | None = None,
        is_uneven: bool = False,
    ) -> None:
        """`load` gets the model in the actor; `sampling` holds what Request takes from the job's `generation`.

        `attempts` tells of videos that this process's like has died of; they get `retries` further attempts.
        `retention` tells that of the next video, where it is not the one of `pruning` for all; where a budget
        `is_uneven`, that is only their mean. Of `samples` a picture is kept.
        """
        self._retention = retention
        self._uneven = Uneven(pruning.retention) if is_uneven else None
        self._samples = samples
        self._suspects = Suspects("generate", attempts, retries)
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
        """Answer each video of the batch; the pipeline sends one at a time. Calls in many threads share the model."""
        return pack_answers([row for i in range(videos.num_rows) for row in self._rows_of(videos.slice(i, 1))])

    def _rows_of(self, video: pa.Table) -> list[dict[str, Any]]:
        group = video.drop_columns("pixels").to_pylist()[0]
        error = RowError(**group["error"]) if group["error"] else None
        if error is None:
            try:
                with self._suspects.attempt(group["shard"], group["group"]) as deaths:
                    group["attempts"] += deaths
                    return self._answer(group, video["pixels"][0].as_buffer())
            except WorkerDied as failure:
                group["attempts"] += failure.deaths - 1
                error = failure
        return [self._failed(group, item, error, group["attempts"]) for item in group["items"]]

    def _answer(self, group: dict[str, Any], pixels: pa.Buffer) -> list[dict[str, Any]]:
        frames = np.frombuffer(pixels, np.uint8).reshape(group["shape"])
        retention = self._retention() if self._retention else None
        if self._uneven:
            retention = self._uneven(retention, frames, sum(item["retention"] is None for item in group["items"]))
        outcomes = self.stream.answer([self._request(group, item, frames, retention) for item in group["items"]])
        rows: list[dict[str, Any]] = []
        for item, outcome in zip(group["items"], outcomes, strict=True):
            attempts = group["attempts"] + outcome.attempts - 1
            if isinstance(outcome.result, RowError):
                row = self._failed(group, item, outcome.result, attempts)
            else:
                row = self._answered(group, item, outcome.result, attempts)
                if self._samples is not None and outcome.result.trace is not None:
                    told = (item["item_id"], item["video_id"], item["prompt"])
                    self._samples.keep(group["shard"], *told, frames, outcome.result)
            row["frames"] = group["shape"][0]
            row["wait_ms"] = max(0.0, (outcome.begun_at - group["decoded_at"]).total_seconds() * 1e3)
            rows.append(row)
        return rows

    def _request(
        self, group: dict[str, Any], item: dict[str, Any], frames: np.ndarray, retention: float | None
    ) -> Request:
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
            retention=retention if item["retention"] is None else item["retention"],
            is_traced=self._samples is not None and self._samples.holds(item["video_id"], item["prompt"]),
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
        for name in ("fetch_ms", "decode_ms", "decode_cpu_ms"):
            if row[name] is not None:
                row[name] /= len(group["items"])
        total_ms = (finished - group["started_at"]).total_seconds() * 1e3
        return row | self.provenance | {"shard": group["shard"], "finished_at": finished, "total_ms": total_ms}


def _open_at_once(path: str, flags: int) -> int:
    """As `open` opens, but without waiting until somebody writes into a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _as_binary(pixels: np.ndarray | None) -> pa.Array:
    """One binary value over the array's own memory, or one null."""
    if pixels is None:
        return pa.nulls(1, pa.large_binary())
    offsets = pa.py_buffer(np.array([0, pixels.nbytes], np.int64))
    data = pa.py_buffer(np.ascontiguousarray(pixels).reshape(-1))
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, data])
