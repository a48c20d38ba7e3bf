"""A repository of the Hugging Face hub as a model that can be fetched, through the hub's own client."""

from __future__ import annotations

import glob
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import ClusterError, UserError, one_line
from pipeline.model_remote import Listing, RemoteFile, checked, disk_errors, is_model_file, matches

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_HUB_ID = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*/([A-Za-z0-9][A-Za-z0-9._-]*))(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ATTEMPTS = 3
_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class HubModel:
    """A repository `owner/name`, at a branch, tag or commit (None: its main branch)."""

    source: str
    repository: str
    name: str
    revision: str | None

    @classmethod
    def parse(cls, source: str) -> HubModel | None:
        """The model that `source` names if it reads `owner/name` or `owner/name@revision`."""
        match = _HUB_ID.fullmatch(source)
        return None if match is None else cls(source, match[1], match[2], match[3])

    @property
    def place(self) -> str:
        """The repository."""
        return self.repository

    def known_version(self) -> str | None:
        """The commit, where the source names it in full."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    def listing(self, version: str | None = None) -> Listing:
        """The files of the revision; the version is its commit."""
        found = self._ask(version or self.revision)
        files = [_remote_file(item) for item in found.siblings or () if is_model_file(item.rfilename)]
        return Listing(str(found.sha), checked(files, self.source))

    def _ask(self, revision: str | None) -> ModelInfo:
        from huggingface_hub import HfApi

        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with _hub_errors(self.source):
                    return HfApi().model_info(
                        self.repository, revision=revision, timeout=_TIMEOUT_S, files_metadata=True
                    )
            except ClusterError:
                if attempt == _ATTEMPTS:
                    raise
            time.sleep(attempt)
        raise AssertionError("the last attempt returns or raises")

    def download(self, listing: Listing, folder: Path) -> None:
        """Fetch with the hub's client, and check every file against the hub's digest of it."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # a job has a display of its own
        with _hub_errors(self.source), disk_errors():
            snapshot_download(
                self.repository,
                revision=listing.version,
                local_dir=folder,
                allow_patterns=[glob.escape(file.name) for file in listing.files],
            )
        for file in listing.files:
            if not matches(folder / file.name, file):
                raise ClusterError(f"{self.source}: {file.name} arrived damaged: start the job again")


def _remote_file(item: Any) -> RemoteFile:
    """Large files lie in Git LFS, which knows the digest of their content; others are plain blobs of git."""
    checksum = f"sha256:{item.lfs.sha256}" if item.lfs else f"git:{item.blob_id}" if item.blob_id else None
    return RemoteFile(item.rfilename, item.size, checksum)


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    """Turn what the hub's client raises into UserError or ClusterError."""
    from huggingface_hub import errors

    try:
        yield
    except (UserError, ClusterError):
        raise
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{source}: the hub has no such revision of this model") from error
    except errors.GatedRepoError as error:
        raise UserError(
            f"{source}: the hub refuses it: accept its terms there, and set HF_TOKEN on every node"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"{source}: neither a folder on this machine nor a model that the hub shows (a private one needs HF_TOKEN)"
        ) from error
    except Exception as error:  # its HTTP library, which it has changed before, has errors of its own
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise UserError(f"{source}: the hub refuses it (HTTP {status}): set HF_TOKEN on every node") from error
        raise ClusterError(
            f"{source}: not a folder on this machine, and the hub could not be reached for it "
            f"({type(error).__name__}: {one_line(str(error), 120)})"
        ) from error
