"""A job on a cluster through Ray's job server: sent, followed, and how it ended."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pipeline import run_environment  # noqa: F401  # before Ray

# isort: split
import aiohttp
import requests
from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE  # its own refusal names no culprits
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipeline.errors import ClusterError, UserError, one_line, scrub

_T = TypeVar("_T")
MOST_BYTES = GCS_STORAGE_MAX_SIZE
_OUTAGE_S = 120.0
_PAUSE_S = 2.0
_UNREACHABLE = (ConnectionError, requests.RequestException, aiohttp.ClientError, OSError, asyncio.TimeoutError)
_OUR_STATUSES = (0, 1, 2, 3, 130)


class JobServer:
    """The job server at `address`, as in http://HEAD:8265. Its errors are UserError and ClusterError."""

    def __init__(self, address: str) -> None:
        """Connect. ClusterError where nobody answers, UserError where the cluster wants another token."""
        self.address = scrub(address)
        # Ray lets these variables win over an address that is handed to it.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
            logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
        self._client: JobSubmissionClient = self._told(lambda: JobSubmissionClient(address))

    def submit(self, name: str, entrypoint: str, folder: Path, metadata: dict[str, str]) -> str:
        """Send `folder` and start `entrypoint` in it; the id of the job. No variable of ours goes along."""
        job_id = f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        return self._told(
            lambda: self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=job_id,
                runtime_env={"working_dir": str(folder)},
                metadata=metadata,
            )
        )

    def follow(self, job_id: str, write: Callable[[str], None]) -> JobDetails:
        """Hand on the job's log as it is written until the job has ended; how it ended.

        A connection that breaks is made anew, for up to two minutes. Raises ClusterError after that.
        """
        shown = 0
        lost_at: float | None = None
        while True:
            shown = asyncio.run(self._tail(job_id, shown, write))
            try:
                details = self.details(job_id)
                if details.status.is_terminal():
                    return details
                lost_at = None
            except ClusterError as error:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at >= _OUTAGE_S:
                    raise ClusterError(f"lost the cluster while the job went on: {error}") from error
            time.sleep(_PAUSE_S)

    async def _tail(self, job_id: str, shown: int, write: Callable[[str], None]) -> int:
        """Write the log from its character `shown` on, as far as the connection lasts; how many are written then."""
        seen = 0
        try:
            async for text in self._client.tail_job_logs(job_id):
                new = text[max(0, shown - seen) :]
                seen += len(text)
                if new:
                    shown = seen
                    write(scrub(new))
        except (*_UNREACHABLE, RuntimeError):
            pass  # whether the job still runs is asked for next
        return shown

    def details(self, job_id: str) -> JobDetails:
        """What the cluster knows of the job."""
        return self._told(lambda: self._client.get_job_info(job_id))

    def _told(self, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except AuthenticationError as error:
            lines = str(error).strip().splitlines() or ["it wants a token"]
            raise UserError(f"the cluster at {self.address} refused us: {one_line(lines[0])}") from error
        except (*_UNREACHABLE, RuntimeError) as error:
            raise ClusterError(f"no job server at {self.address}: {one_line(str(error), 200)}") from error


def exit_status_of(details: JobDetails) -> int:
    """The job's own exit status; 130 for one that was stopped, 3 for one that the cluster could not run or lost."""
    if details.status == JobStatus.STOPPED:
        return 130
    code = details.driver_exit_code
    return code if code in _OUR_STATUSES else 3


def why_it_ended(details: JobDetails) -> str:
    """One line on a job whose own last lines do not tell; nothing where they do."""
    if details.status == JobStatus.STOPPED:
        return "the job was stopped; what is committed stays, and the same command does the rest"
    if details.driver_exit_code in _OUR_STATUSES:
        return ""
    told = (details.message or "").strip().splitlines()
    if details.driver_exit_code is not None:
        return f"the job's process ended with {details.driver_exit_code}: it was killed, or could not start"
    return f"the cluster did not run the job to its end: {one_line(told[0]) if told else details.status}"
