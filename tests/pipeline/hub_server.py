"""A stand-in for the Hugging Face hub: enough of its protocol, over HTTP, for its own client to list and fetch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

from tests.loopback import serving

MAIN = "1" * 40


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass
class Hub:
    """`files` of each commit of the repository `owner/some-7b`; large ones (safetensors) count as Git LFS."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=lambda: {"main": MAIN})
    refuses: tuple[int, str] | None = None  # status and X-Error-Code of every answer
    damages: str | None = None  # a file whose content arrives changed
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        if self.refuses:
            return self.refuses[0], {"X-Error-Code": self.refuses[1]}, b""
        parts = urlparse(path).path.strip("/").split("/")
        if parts[:4] == ["api", "models", "owner", "some-7b"]:
            revision = parts[5] if len(parts) > 5 else "main"
        elif parts[:3] == ["owner", "some-7b", "resolve"]:
            revision = parts[3]
        else:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        commit = self.branches.get(revision, revision)
        files = self.commits.get(commit)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if parts[0] == "owner":
            return self._file(commit, files, "/".join(parts[4:]))
        if "tree" in parts:
            rows = [_tree_entry(name, content) for name, content in files.items()]
            return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()
        siblings = [_sibling(name, content) for name, content in files.items()]
        told = {"id": "owner/some-7b", "sha": commit, "siblings": siblings, "tags": [], "private": False}
        return 200, {"Content-Type": "application/json"}, json.dumps(told).encode()

    def _file(self, commit: str, files: dict[str, bytes], name: str) -> tuple[int, dict[str, str], bytes]:
        if name not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        content = files[name]
        etag = hashlib.sha256(content).hexdigest() if name.endswith(".safetensors") else git_digest(content)
        body = content[:-1] + bytes([content[-1] ^ 1]) if name == self.damages else content
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, body


def _sibling(name: str, content: bytes) -> dict:
    row = {"rfilename": name, "size": len(content), "blobId": git_digest(content)}
    if name.endswith(".safetensors"):
        row["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
    return row


def _tree_entry(name: str, content: bytes) -> dict:
    row = {"type": "file", "path": name, "size": len(content), "oid": git_digest(content)}
    if name.endswith(".safetensors"):
        row["lfs"] = {"size": len(content), "oid": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
    return row


@contextmanager
def serve_hub(files: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub({MAIN: files})

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = answer

        def log_message(self, *_: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as hub.url:
        yield hub
