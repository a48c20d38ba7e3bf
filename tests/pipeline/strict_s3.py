"""moto behind a gate: conditional writes decided one at a time, as S3 promises, and faults on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from tests.loopback import serving

_PLAIN = [("Content-Type", "text/plain"), ("Content-Length", "0")]


class StrictS3:
    """`away`: every request is answered 503. `lose_answers`: writes go through, but are answered 500.

    `ignores_conditions`: If-Match and If-None-Match are not looked at.
    """

    def __init__(self) -> None:
        self.away = self.lose_answers = self.ignores_conditions = False
        self._turn = threading.Lock()
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if self.away:
            start("503 Service Unavailable", _PLAIN)
            return [b""]
        if self.ignores_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
            environ.pop("HTTP_IF_MATCH", None)
        with self._turn:
            answer: list[Any] = []
            body = list(self._moto(environ, lambda *status_and_headers: answer.extend(status_and_headers)))
        if self.lose_answers and environ["REQUEST_METHOD"] == "PUT" and answer[0].startswith("200"):
            answer, body = ["500 Internal Server Error", _PLAIN], [b""]
        start(*answer[:2])
        return body

    @contextmanager
    def as_endpoint(self, environment: pytest.MonkeyPatch) -> Iterator[None]:
        """Serve on the loopback interface, as the S3 endpoint of this process and of those that it starts."""
        with serving(make_server("127.0.0.1", 0, self, threaded=True, request_handler=MotoRequestHandler)) as url:
            environment.setenv("AWS_ENDPOINT_URL", url)
            yield
