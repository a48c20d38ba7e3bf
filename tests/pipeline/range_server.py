"""An S3 endpoint that holds one object, notes what is asked of it, and misbehaves on demand."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.loopback import serving


class RangeServer:
    """`faults` are taken one a request: an HTTP status, "short", "reset", "stall", None (a good answer) or "replaced".

    After the good answer "replaced", the object is another one: the same bytes from behind.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.etag = '"one"'
        self.serves_ranges = True
        self.checks_etag = True
        self.faults: list[int | str | None] = []
        self.requests: list[tuple[int, int]] = []  # first byte and the one behind the last; all of it as (0, -1)
        self.at_once = self.most_at_once = 0
        self.delay_s = 0.0
        self.lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[str]:
        """The endpoint's url."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        server.daemon_threads = True
        with serving(server) as url:
            yield url

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with outer.lock:
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                try:
                    self.answer()
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with outer.lock:
                        outer.at_once -= 1

            def answer(self):
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                begin, end = (int(asked[1]), int(asked[2]) + 1) if asked else (0, -1)
                with outer.lock:
                    outer.requests.append((begin, end))
                    fault = outer.faults.pop(0) if outer.faults else None
                time.sleep(outer.delay_s)
                size = len(outer.content)
                if isinstance(fault, int):
                    return self.refuse(fault)
                if outer.checks_etag and self.headers.get("If-Match", outer.etag) != outer.etag:
                    return self.refuse(412)
                ranged = asked is not None and outer.serves_ranges
                if ranged and begin >= size:
                    return self.refuse(416)
                begin, end = (begin, min(end, size)) if ranged else (0, size)
                self.send_response(206 if ranged else 200)
                if ranged:
                    self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
                self.send_header("Content-Length", str(end - begin))
                self.send_header("ETag", outer.etag)
                self.end_headers()
                body = outer.content[begin:end]
                if fault in ("short", "reset", "stall"):
                    self.wfile.write(body[: len(body) // 2])
                    self.wfile.flush()
                    time.sleep(5 if fault == "stall" else 0)
                    if fault == "reset":  # closing with a linger time of zero sends RST
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        self.connection.close()
                    self.close_connection = True
                else:
                    if fault == "replaced":
                        outer.content, outer.etag = outer.content[::-1], f'"{len(outer.requests)}"'
                    self.wfile.write(body)

            def refuse(self, status):
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        return Handler
