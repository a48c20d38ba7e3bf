"""The proxy itself: what it does to a request, the client and the server behind it see."""

import http.client
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.faults.s3_proxy import Faults, S3Proxy
from tests.loopback import serving


@pytest.fixture
def served():
    """A server that keeps what is put into it, and the proxy before it."""
    stored: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self):
            stored[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(b"")

        def do_GET(self):
            self.answer(stored[self.path])

        def answer(self, content):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", '"x"')
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with serving(server), S3Proxy(*server.server_address).running() as proxy:
        yield proxy, stored


@contextmanager
def connected(proxy):
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=10)
    try:
        yield connection
    finally:
        connection.close()


def ask(proxy, method="GET", body=None, **headers):
    with connected(proxy) as connection:
        connection.request(method, "/bucket/key?list=1", body, headers, encode_chunked="Transfer-Encoding" in headers)
        response = connection.getresponse()
        return response.status, response.read()


def test_without_faults_requests_pass_both_ways(served):
    proxy, stored = served
    assert ask(proxy, "PUT", b"content") == (200, b"")
    assert ask(proxy) == (200, b"content")
    assert stored == {"/bucket/key?list=1": b"content"}
    assert [(seen.method, seen.fault) for seen in proxy.seen] == [("PUT", None), ("GET", None)]


def test_a_body_in_chunks_arrives_whole(served):
    proxy, stored = served
    ask(proxy, "PUT", iter([b"one ", b"two"]), **{"Transfer-Encoding": "chunked"})
    assert list(stored.values()) == [b"one two"]


@pytest.mark.parametrize(("fault", "status"), [("error_500", 500), ("slow_down_503", 503)])
def test_the_service_refuses(served, fault, status):
    proxy, stored = served
    proxy.faults = Faults(**{fault: 1.0})
    assert ask(proxy, "PUT", b"content")[0] == status
    assert stored == {}


@pytest.mark.parametrize(("fault", "is_done"), [("reset", False), ("lost_answer", True)])
def test_the_connection_breaks_before_or_after_the_deed(served, fault, is_done):
    proxy, stored = served
    proxy.faults = Faults(**{fault: 1.0})
    with pytest.raises(ConnectionError):
        ask(proxy, "PUT", b"content")
    assert bool(stored) == is_done


def test_an_answer_is_cut(served):
    proxy, _ = served
    ask(proxy, "PUT", b"x" * 1000)
    proxy.faults = Faults(cut=1.0)
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        ask(proxy)


def test_a_slow_answer_comes_late(served):
    proxy, _ = served
    proxy.faults = Faults(slow=1.0, slow_s=0.3)
    began = time.monotonic()
    assert ask(proxy, "PUT", b"content") == (200, b"")
    assert time.monotonic() - began >= 0.3


def test_while_it_is_away_nobody_is_served_and_afterwards_all_are(served):
    proxy, _ = served
    with connected(proxy) as before:
        before.request("PUT", "/a", b"content")
        before.getresponse().read()
        with proxy.away():
            with pytest.raises((ConnectionError, http.client.BadStatusLine)):
                ask(proxy)
            with pytest.raises(ConnectionError):
                before.sock.recv(1)
    assert ask(proxy, "PUT", b"content") == (200, b"")


def test_each_fault_meets_its_share():
    faults = Faults(error_500=0.125, slow=0.25, cut=0.375)
    drawn = [faults.draw(n / 16) for n in range(16)]
    assert {name: drawn.count(name) for name in set(drawn)} == {"error_500": 2, "slow": 4, "cut": 6, None: 4}
