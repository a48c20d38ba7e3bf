"""A night's job on S3: its manifest, its drivers, and whether its output holds each row exactly once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from s3fs import S3FileSystem

from tests.faults.driver import Driver

BUCKET = "nights"  # moto keeps one store a process: another folder of tests has an "archive"
QUESTIONS = 2  # about each video: they are one group


class Night:
    """A job over `rows` questions, two about each of its videos, all of which have the content `video`.

    `files` reaches the server itself, past any proxy. `environment` is what drivers need to reach it.
    """

    def __init__(
        self, files: S3FileSystem, name: str, folder: Path, environment: dict[str, str], video: bytes, rows: int
    ) -> None:
        self.files = files
        self.manifest = f"s3://{BUCKET}/manifests/{name}.jsonl"
        self.output = f"s3://{BUCKET}/{name}"
        self.folder = folder
        self.journal = folder / "journal"
        self.questions = [f"question {n}" for n in range(rows)]
        self._environment = environment
        self._drivers: list[Driver] = []
        uris = [f"s3://{BUCKET}/videos-of-{name}/{n // QUESTIONS}.mp4" for n in range(rows)]
        asked = [{"uri": uri, "question": question} for uri, question in zip(uris, self.questions, strict=True)]
        files.pipe(dict.fromkeys(uris, video))
        files.pipe(self.manifest, "\n".join(map(json.dumps, asked)).encode())

    def start(self, address: str, *given: str, seconds: float = 0.1, **environment: str) -> Driver:
        """Start the job, or continue it, on the cluster at `address`; an answer takes so many seconds."""
        plain = [f"manifest={self.manifest}", f"output={self.output}", "video.frames=4", "cluster.rows_per_shard=4"]
        environment = {**self._environment, "RAY_ADDRESS": address, **environment}
        folder = self.folder / f"driver-{len(self._drivers)}"
        self._drivers.append(Driver(folder, self.journal, seconds, [*plain, *given], **environment))
        return self._drivers[-1]

    def finish(self, driver: Driver) -> None:
        """Wait until a driver has ended, and well; then `check`."""
        status = driver.finish()
        failures = Counter((row["error_code"], row["error_message"]) for row in self.committed())
        assert status == 0, f"{driver.error} {failures}"
        self.check()

    def end(self) -> None:
        """Kill the drivers that still run."""
        for driver in self._drivers:
            driver.kill()

    def answered(self) -> list[str]:
        """Every question that a model has answered, again where it was answered again."""
        return self.journal.read_text().splitlines() if self.journal.exists() else []

    def result_files(self) -> list[str]:
        return sorted(path for path in self.files.find(f"{self.output}/results", refresh=True))

    def committed(self) -> list[dict[str, Any]]:
        """The rows of all result files, each file read whole."""
        return [row for path in self.result_files() for row in _rows(self.files, path)]

    def check(self, error_codes: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Every row is there once with its own answer, nothing else is, and each summary agrees. Returns the rows.

        Rows may have failed with `error_codes` only.
        """
        rows = self.committed()
        assert Counter(row["prompt"] for row in rows) == Counter(self.questions)
        assert len({row["item_id"] for row in rows}) == len(rows)
        told = {row["prompt"]: row["answer"] for row in rows if row["status"] == "ok"}
        assert told == {prompt: f"answer to {prompt}" for prompt in told}
        assert {row["error_code"] for row in rows} <= {None, *error_codes}
        self._check_summaries()
        self._check_leftovers()
        return rows

    def _check_summaries(self) -> None:
        plans = {path.split("/")[-2]: path for path in self._beside_results() if path.endswith("/plan.json")}
        runs = {run_id for run_id, path in plans.items() if "given_up" not in json.loads(self.files.cat(path))}
        summaries = [path for path in self._beside_results() if path.endswith("/summary.json")]
        found = {path.split("/")[-2]: json.loads(self.files.cat(path)) for path in summaries}
        assert not runs - found.keys(), "a run without a summary"
        for run_id, summary in found.items():
            files = [path for path in self.result_files() if path.split("/")[-1].startswith(run_id)]
            rows = [row for path in files for row in _rows(self.files, path)]
            codes = Counter(row["error_code"] for row in rows if row["status"] == "error")
            counted = (len(files), len(rows), len(rows) - codes.total(), codes.total(), dict(codes))
            assert counted == tuple(summary[key] for key in ("shards", "rows", "ok", "errors", "error_codes"))
            assert summary["manifest_rows"] == len(rows)

    def _check_leftovers(self) -> None:
        assert all(path.endswith(".parquet") and "/run_date=" in path for path in self.result_files())
        names = [path.split("/")[-1] for path in self.files.find(f"{self.output}/", refresh=True)]
        assert not [name for name in names if name.startswith(".") or name.endswith(".tmp")]

    def _beside_results(self) -> list[str]:
        return [path for path in self.files.find(f"{self.output}/", refresh=True) if "/results/" not in path]


def _rows(files: S3FileSystem, path: str) -> list[dict[str, Any]]:
    with files.open(path, "rb") as file:
        return pq.ParquetFile(file).read().to_pylist()
