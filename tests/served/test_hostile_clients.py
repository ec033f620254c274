"""Hostile and slow clients through each frontend: what our own listener bounds, and what the others do.

The bounds of our own listener are tested in detail in `tests/ingress`; here each frontend has to show what the table of
`docs/operations.md` says about it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress

import pytest

from rbee_serve.config import LimitsConfig
from tests.ingress.bad_json import INFER
from tests.raw_http import connected, head, whole
from tests.served.frontends import PROXIES, Frontend, Mode, via
from tests.served.measured import measured

pytestmark = pytest.mark.ray

all_frontends = via("own", "throughput", "haproxy")
WAIT_S = 15.0
"""Longer than the time of the headers on our own listener."""


def exchange_raw(frontend: Frontend, request: bytes, within_s: float) -> tuple[bytes, float, bool]:
    """What came, after how many seconds, and whether the connection was closed in this time."""
    began = time.monotonic()
    received, closed = b"", False
    with connected(frontend.url, within_s) as connection, suppress(TimeoutError, ConnectionError):
        connection.sendall(frontend.with_token(request))
        while time.monotonic() - began < within_s:
            connection.settimeout(max(0.1, within_s - (time.monotonic() - began)))
            piece = connection.recv(65536)
            if not piece:
                closed = True
                break
            received += piece
    return received, time.monotonic() - began, closed


LARGE_HEADERS: dict[Mode, bytes] = {"own": b"431", "throughput": b"200", "haproxy": b"400"}


@all_frontends
def test_headers_of_a_megabyte(frontend: Frontend) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: " + b"x" * 1024**2 + b"\r\n\r\n"
    received, _, _ = exchange_raw(frontend, request, WAIT_S)
    assert received.startswith(b"HTTP/1.1 " + LARGE_HEADERS[frontend.mode])


SLOW_HEADERS: dict[Mode, bytes | None] = {"own": b"408", "throughput": None, "haproxy": None}
"""The status after at most `WAIT_S`; None where the connection is still open then."""


@all_frontends
def test_headers_without_an_end(frontend: Frontend) -> None:
    received, seconds, closed = exchange_raw(frontend, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ", WAIT_S)
    status = SLOW_HEADERS[frontend.mode]
    if status is None:
        assert not closed
    else:
        assert received.startswith(b"HTTP/1.1 " + status)
        measured("headers without an end", "408", seconds, LimitsConfig().header_timeout_s + 2.5)


KEEPS_HEADERS: dict[Mode, bool] = {"own": False, "throughput": True, "haproxy": False}
"""Whether headers take memory for as long as they come."""
INGRESS = "ray::ServeReplica:rbee:ingress"
MIB = 1024**2


@all_frontends
def test_headers_that_grow_without_an_end(frontend: Frontend) -> None:
    process = frontend.process((PROXIES[frontend.mode] or [INGRESS])[0])
    before, piece = process.memory_info().rss, (b"X: " + b"x" * 1000 + b"\r\n") * 65
    with ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(connected(frontend.url, 5))
            with suppress(OSError):
                connection.sendall(frontend.with_token(b"GET /health HTTP/1.1\r\nHost: localhost\r\n"))
                for _ in range(160):
                    connection.sendall(piece)
        time.sleep(1)
        grown = process.memory_info().rss - before
    assert (grown > 16 * MIB) is KEEPS_HEADERS[frontend.mode], f"{grown / MIB:.0f} of 40 MiB"


HTTP_2: dict[Mode, bytes] = {"own": b"505", "throughput": b"400", "haproxy": b""}


@all_frontends
def test_http_2_with_prior_knowledge_is_refused(frontend: Frontend) -> None:
    began = time.monotonic()
    with connected(frontend.url, WAIT_S) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        received = connection.recv(4096)
    assert not received.startswith(b"HTTP/1.1 5") or frontend.mode == "own"
    assert HTTP_2[frontend.mode] in received
    assert time.monotonic() - began < WAIT_S


CHUNKS_IN_HTTP_1_0: dict[Mode, bool] = {"own": False, "throughput": True, "haproxy": True}


@all_frontends
def test_a_stream_to_an_http_1_0_client(frontend: Frontend) -> None:
    request = whole(INFER, b'{"prompt": "a b c"}').replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    received, _, closed = exchange_raw(frontend, request, WAIT_S)
    response_head, _, body = received.partition(b"\r\n\r\n")
    assert closed
    assert (b"transfer-encoding: chunked" in response_head.lower()) == CHUNKS_IN_HTTP_1_0[frontend.mode]
    assert body.startswith(b"data: ") != CHUNKS_IN_HTTP_1_0[frontend.mode]
    assert b"data: [DONE]\n\n" in body


@all_frontends
def test_a_body_without_an_end_gets_408(frontend: Frontend) -> None:
    began = time.monotonic()
    with connected(frontend.url, WAIT_S) as connection:
        connection.sendall(frontend.with_token(head(INFER, b"Content-Length: 1000")) + b"{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
    measured("a body without an end", "408", time.monotonic() - began, 4.0)
