"""An HTTP proxy before an S3 server that does to a share of the requests what networks and services do."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "te", "expect", "content-length", "host"}
_WITHOUT_BODY = {204, 304}


@dataclass(frozen=True)
class Faults:
    """The share of requests, 0 to 1, that meets each fault; none meets two.

    `error_500` and `slow_down_503` are the service's own answers. `slow` requests take `slow_s` more. With `reset`
    the connection breaks before the server has heard anything, with `lost_answer` after it has done what was asked,
    with `cut` in the middle of the answer's body.
    """

    error_500: float = 0.0
    slow_down_503: float = 0.0
    slow: float = 0.0
    reset: float = 0.0
    lost_answer: float = 0.0
    cut: float = 0.0
    slow_s: float = 2.0

    def draw(self, chance: float) -> str | None:
        """The fault that a request meets whose draw from 0 to 1 was `chance`."""
        for name in ("error_500", "slow_down_503", "slow", "reset", "lost_answer", "cut"):
            chance -= getattr(self, name)
            if chance < 0:
                return name
        return None


EACH = Faults(error_500=0.03, slow_down_503=0.03, slow=0.03, reset=0.03, lost_answer=0.03, cut=0.03, slow_s=1.0)


@dataclass(frozen=True)
class Seen:
    """A request and what became of it; `fault` is None where it was passed on and answered."""

    method: str
    path: str
    fault: str | None


class S3Proxy:
    """Passes requests on to `host:port`. `faults` may be replaced at any moment; `seen` holds every request so far."""

    def __init__(self, host: str, port: int, seed: int = 0) -> None:
        self.faults = Faults()
        self.seen: list[Seen] = []
        self._upstream = (host, port)
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @contextmanager
    def running(self) -> Iterator[S3Proxy]:
        self._listen()
        try:
            yield self
        finally:
            self._hang_up()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Inside, open connections are reset and new ones refused."""
        self._hang_up()
        try:
            yield
        finally:
            self._listen()

    def go_away(self, seconds: float) -> threading.Thread:
        """`away` for some seconds, meanwhile; the thread ends when the server is back."""

        def stay_away() -> None:
            with self.away():
                time.sleep(seconds)

        thread = threading.Thread(target=stay_away, daemon=True)
        thread.start()
        return thread

    def _listen(self) -> None:
        self._server = _Server(("127.0.0.1", self._port), self._handler())
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _hang_up(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            connections, self._connections = self._connections, set()
        for connection in connections:
            _reset(connection)

    def _draw(self, method: str, path: str) -> str | None:
        with self._lock:
            fault = self.faults.draw(self._chance.random())
            self.seen.append(Seen(method, path, fault))
            return fault

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with outer._lock:
                    outer._connections.add(self.connection)

            def finish(self) -> None:
                with outer._lock:
                    outer._connections.discard(self.connection)
                with suppress(OSError, ValueError):
                    super().finish()

            def handle(self) -> None:
                with suppress(OSError, ValueError):  # the client went, or `away` took the connection from us
                    super().handle()

            def serve(self) -> None:
                body = self._body()
                fault = outer._draw(self.command, self.path)
                if fault == "reset":
                    return self._break()
                if fault in ("error_500", "slow_down_503"):
                    return self._refuse(fault)
                if fault == "slow":
                    time.sleep(outer.faults.slow_s)
                self._pass_on(body, fault)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                pieces = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
                return b"".join(pieces)

            def _pass_on(self, body: bytes, fault: str | None) -> None:
                kept = {name: value for name, value in self.headers.items() if name.lower() not in _OF_ONE_CONNECTION}
                # The signature covers the host that the client spoke to.
                kept |= {"Host": self.headers["Host"], "Content-Length": str(len(body))}
                upstream = http.client.HTTPConnection(*outer._upstream, timeout=60)
                try:
                    upstream.request(self.command, self.path, body, kept)
                    response = upstream.getresponse()
                    content = response.read()
                finally:
                    upstream.close()
                if fault == "lost_answer":
                    return self._break()
                self.send_response(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in _OF_ONE_CONNECTION | {"server", "date"}:
                        self.send_header(name, value)
                if response.status not in _WITHOUT_BODY:
                    told = response.getheader("Content-Length") if self.command == "HEAD" else None
                    self.send_header("Content-Length", told or str(len(content)))
                self.end_headers()
                if fault == "cut":
                    self.wfile.write(content[: len(content) // 2])
                    return self._break()
                self.wfile.write(content)

            def _refuse(self, fault: str) -> None:
                status, code = {"error_500": (500, "InternalError"), "slow_down_503": (503, "SlowDown")}[fault]
                content = b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code></Error>".encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/xml")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _break(self) -> None:
                self.close_connection = True
                self.wfile.flush()
                _reset(self.connection)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def shutdown_request(self, request: socket.socket) -> None:
        self.close_request(request)  # no FIN of its own, which would come before the RST


def _reset(connection: socket.socket) -> None:
    """Let a connection end by RST: without lingering, once its handler, which this wakes, closes it."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
