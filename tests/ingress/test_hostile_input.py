"""Input that is no good HTTP, on the ingress's own listener."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.ingress.hostile import GOOD, Attacked, attacked, closed, health_of, response_of

HOST = b"Host: localhost\r\n"
CHUNKED = b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
KIB = 1024


@pytest.fixture(scope="module")
def server() -> Iterator[Attacked]:
    with attacked() as server:
        yield server


def answer(server: Attacked, request: bytes, timeout_s: float = 5.0) -> bytes:
    with server.connect() as connection:
        connection.sendall(request)
        return response_of(connection, timeout_s)


def get(*lines: bytes) -> bytes:
    return b"GET /health HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return b"POST /echo HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


REFUSED = [
    ("a request line of 70 kB", b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 431, "HEADERS_TOO_LARGE"),
    ("a request line without an end", b"GET /" + b"x" * 70_000, 431, "HEADERS_TOO_LARGE"),
    ("one header of 70 kB", get(b"X: " + b"x" * 70_000), 431, "HEADERS_TOO_LARGE"),
    ("one header of 8 MB", get(b"X: " + b"x" * 8_000_000), 431, "HEADERS_TOO_LARGE"),
    ("a header name without an end", b"GET / HTTP/1.1\r\n" + b"x" * 70_000, 431, "HEADERS_TOO_LARGE"),
    ("many headers of 1 kB", get(*[b"X: " + b"x" * 1000] * 70), 431, "HEADERS_TOO_LARGE"),
    ("tiny headers", get(*[b"a:"] * 300), 431, "HEADERS_TOO_LARGE"),
    ("empty lines before a request", b"\r\n" * 40_000, 431, "HEADERS_TOO_LARGE"),
    ("a chunk size of zeros", CHUNKED + b"0" * 200_000, 400, "INVALID_REQUEST"),
    ("a chunk extension without an end", CHUNKED + b"3;" + b"a" * 200_000, 400, "INVALID_REQUEST"),
    ("trailers without an end", CHUNKED + b"0\r\n" + b"X: y\r\n" * 40_000, 400, "INVALID_REQUEST"),
    ("chunks of one byte", CHUNKED + b"1\r\nx\r\n" * 200_000, 400, "INVALID_REQUEST"),
    ("a chunk that is longer than its size", CHUNKED + b"1\r\nxyz\r\n0\r\n\r\n", 400, "INVALID_REQUEST"),
    ("line ends without CR", b"GET /health HTTP/1.1\nHost: localhost\n\n", 400, "INVALID_REQUEST"),
    ("a header line that ends without CR", get(b"X: y\nY: z"), 400, "INVALID_REQUEST"),
    ("a CR within a header", get(b"X: y\rZ"), 400, "INVALID_REQUEST"),
    ("a header over two lines", get(b"X: y", b"  z"), 400, "INVALID_REQUEST"),
    ("a header without a colon", get(b"nothing"), 400, "INVALID_REQUEST"),
    ("a space before a colon", post(b"Content-Length : 3", body=b"abc"), 400, "INVALID_REQUEST"),
    ("two lengths", post(b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"), 400, "INVALID_REQUEST"),
    ("a list of lengths", post(b"Content-Length: 3, 3", body=b"abc"), 400, "INVALID_REQUEST"),
    (
        "a length and chunks",
        post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        400,
        "INVALID_REQUEST",
    ),
    ("chunks that are not the last encoding", post(b"Transfer-Encoding: chunked, gzip"), 400, "INVALID_REQUEST"),
    ("HTTP/2 with prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "INVALID_REQUEST"),
    ("HTTP/2.0 in a request line", b"GET / HTTP/2.0\r\n\r\n", 505, "INVALID_REQUEST"),
    ("HTTP/3.7", b"GET / HTTP/3.7\r\n\r\n", 505, "INVALID_REQUEST"),
    ("HTTP/0.9", b"GET /\r\n\r\n", 505, "INVALID_REQUEST"),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 100, 400, "INVALID_REQUEST"),
    ("a WebSocket", get(b"Connection: Upgrade", b"Upgrade: websocket"), 400, "INVALID_REQUEST"),
    ("CONNECT", b"CONNECT localhost:22 HTTP/1.1\r\n" + HOST + b"\r\n", 405, "METHOD_NOT_ALLOWED"),
    ("a method that does not exist", b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n", 400, "INVALID_REQUEST"),
]


@pytest.mark.parametrize(("request_", "status", "code"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_it_gets_one_refusal_and_the_connection_is_closed(
    server: Attacked, request_: bytes, status: int, code: str
) -> None:
    response = answer(server, request_)
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert re.search(rb"\r\nx-correlation-id: corr-[0-9a-f]{16}\r\n", head)
    assert b"\r\nconnection: close" in head
    assert json.loads(body)["code"] == code
    assert json.loads(body)["retriable"] is False


def test_trace_is_refused(server: Attacked) -> None:
    response = answer(server, b"TRACE /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: secret\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 405 ")
    assert b"secret" not in response


def test_the_correlation_id_of_the_request_is_in_the_refusal(server: Attacked) -> None:
    assert b"x-correlation-id: mine-1\r\n" in answer(server, get(b"X-Correlation-ID: mine-1", b"X: " + b"x" * 70_000))


@pytest.mark.parametrize(
    "request_",
    [
        post(b"Content-Length: 3", b"Connection: close", b"X: " + b"x" * 60_000, body=b"abc"),
        CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n",
        post(b"Content-Length: 3", b"Connection: close", b"Expect: something", body=b"abc"),
        b"POST http://localhost/echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
    ],
    ids=["60 kB of headers", "a chunk extension and a trailer", "an unknown expectation", "an absolute target"],
)
def test_what_is_unusual_and_allowed_is_served(server: Attacked, request_: bytes) -> None:
    response = answer(server, request_)
    assert response.startswith(b"HTTP/1.1 200 ")
    assert response.endswith(b"\r\n\r\nabc")


@pytest.mark.parametrize("framing", [b"Content-Length: 3", b"Transfer-Encoding: chunked"])
def test_an_offer_of_http_2_does_not_lose_the_body(server: Attacked, framing: bytes) -> None:
    # Java's HTTP client offers it with every first request.
    body = b"abc" if b"Length" in framing else b"3\r\nabc\r\n0\r\n\r\n"
    offer = [b"Connection: Upgrade, HTTP2-Settings, close", b"Upgrade: h2c", b"HTTP2-Settings: AAE"]
    for cut in (0, 1, 60, len(body)):
        request = post(*offer, framing, body=body)
        with server.connect() as connection:
            connection.sendall(request[: len(request) - cut])
            connection.sendall(request[len(request) - cut :])
            response = response_of(connection)
        assert response.startswith(b"HTTP/1.1 200 ")
        assert response.endswith(b"\r\n\r\nabc")


def test_an_offer_of_http_2_does_not_lose_the_headers(server: Attacked) -> None:
    offer = b"Host: localhost\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n"
    assert answer(server, b"GET /health HTTP/1.1\r\n" + offer).startswith(b"HTTP/1.1 200 ")


def test_100_continue_is_sent_before_the_body(server: Attacked) -> None:
    with server.connect() as connection:
        connection.sendall(post(b"Content-Length: 3", b"Connection: close", b"Expect: 100-continue"))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert response_of(connection).startswith(b"HTTP/1.1 200 ")


def test_a_stream_to_an_http_1_0_client_has_no_chunks_and_ends_with_the_connection(server: Attacked) -> None:
    for connection in (b"", b"Connection: keep-alive\r\n"):
        response = answer(server, b"GET /three HTTP/1.0\r\n" + connection + b"\r\n")
        head, _, body = response.partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert b"\r\nconnection: close" in head
        assert body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


def test_an_http_1_0_connection_stays_open_only_if_the_client_asks(server: Attacked) -> None:
    assert answer(server, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    with server.connect() as connection:
        for _ in range(2):
            request = b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
            assert b"\r\nconnection: keep-alive\r\n" in health_of(connection, request)


def test_few_requests_at_once_are_served_in_order_and_many_are_not_kept(server: Attacked) -> None:
    paths = [b"/three", b"/health", b"/v1/ready"]
    with server.connect() as connection:
        connection.sendall(b"".join(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path for path in paths))
        received = b""
        while received.count(b"HTTP/1.1 ") < 3:
            received += connection.recv(65536)
    assert received.count(b"HTTP/1.1 200 ") == 3
    assert received.index(b"data: 2") < received.rindex(b"HTTP/1.1 200 ")
    assert 1 <= answer(server, get() * 5000).count(b"HTTP/1.1 200 ") <= 9


def test_the_responses_before_a_flood_of_requests_reach_the_client(server: Attacked) -> None:
    response = answer(server, b"GET /three HTTP/1.1\r\nHost: localhost\r\n\r\n" + get() * 200_000)
    assert response.startswith(b"HTTP/1.1 200 ")
    assert response.endswith(b'{"status":"healthy"}')


def test_after_a_response_that_ends_the_connection_no_other_request_is_served(server: Attacked) -> None:
    old = b"GET /three HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    response = answer(server, old + b"POST /echo HTTP/1.0\r\nContent-Length: 9\r\n\r\n" + b"x", timeout_s=8.0)
    assert response.endswith(b"data: 2\n\n")
    assert response.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("max_header_bytes", [4096, 64 * KIB])
def test_a_head_is_counted_from_its_own_beginning(max_header_bytes: int) -> None:
    largest = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "
    largest += b"x" * (max_header_bytes - len(largest) - 4) + b"\r\n\r\n"
    with attacked({"max_header_bytes": max_header_bytes}) as server:
        with server.connect() as connection:
            for _ in range(3):
                assert health_of(connection, largest).startswith(b"HTTP/1.1 200 ")
        with server.connect() as connection:
            for size in (5, 5000, 16_000, 100_000):
                connection.sendall(post(b"Content-Length: %d" % size, body=b"x" * (size - 1) + b"}"))
                assert health_of(connection, b"").startswith(b"HTTP/1.1 200 ")
        with server.connect() as connection:  # the next head begins in the piece in which a body ends
            connection.sendall(post(b"Content-Length: 16000"))
            connection.sendall(b"x" * 15_999 + b"}" + get()[:20])
            assert health_of(connection, b"").startswith(b"HTTP/1.1 200 ")
            assert health_of(connection, get()[20:]).startswith(b"HTTP/1.1 200 ")
        server.first_byte_s()


def test_the_framing_of_a_body_is_counted_from_its_own_beginning(server: Attacked) -> None:
    with server.connect() as connection:
        connection.sendall(CHUNKED + b"%x\r\n%b" % (500_000, b"x" * 490_000))
        time.sleep(0.2)
        connection.sendall(b"x" * 9_999 + b"}\r\n0\r\n\r\n" + post(b"Content-Length: 5", body=b"x"))
        assert health_of(connection, b"").startswith(b"HTTP/1.1 200 ")
        assert health_of(connection, b"xxx}").startswith(b"HTTP/1.1 200 ")


def test_what_follows_the_last_request_of_a_connection_does_not_disturb_its_response(server: Attacked) -> None:
    for path, end in ((b"/three", b"0\r\n\r\n"), (b"/health", b"}")):
        last = b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path
        response = answer(server, last + get())
        assert response.startswith(b"HTTP/1.1 200 ")
        assert response.count(b"HTTP/1.1 ") == 1
        assert response.endswith(end)


def test_garbage_after_a_request_does_not_disturb_its_response(server: Attacked) -> None:
    response = answer(server, b"GET /three HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"\0garbage")
    assert response.count(b"HTTP/1.1 ") == 1
    assert response.endswith(b"0\r\n\r\n")


def test_a_body_behind_an_open_request_is_not_read_into_memory(server: Attacked) -> None:
    before = server.memory()
    with server.connect() as connection:
        connection.sendall(b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n" + CHUNKED)
        connection.settimeout(1)
        flood = b"%x\r\n%b\r\n" % (KIB * KIB, b"x" * KIB * KIB) * 100
        with pytest.raises(TimeoutError):
            connection.sendall(flood)
        assert server.memory() - before < 10 * KIB * KIB


def test_endless_headers_take_at_most_64_kb_a_connection() -> None:
    with attacked({"header_timeout_s": 60}) as server, ExitStack() as stack:
        before = server.memory()
        line = b"X-Endless: " + b"x" * 1000 + b"\r\n"
        held = server.connections(200, b"GET / HTTP/1.1\r\n" + line * 60, stack)
        server.first_byte_s()
        assert server.memory() - before < 200 * 64 * KIB * 1.5
        for connection in held:
            connection.setblocking(True)
            connection.settimeout(5)
            _send_until_refused(connection, line * 1000)
        assert closed(held, 8.0) == 200
        server.first_byte_s()
        assert server.memory() - before < 200 * 64 * KIB * 1.5


def _send_until_refused(connection: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        connection.sendall(data)
    connection.setblocking(False)


def test_tiny_headers_take_little_memory_too() -> None:
    with attacked({"header_timeout_s": 60}) as server, ExitStack() as stack:
        before = server.memory()
        server.connections(300, b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 250, stack)
        server.first_byte_s()
        assert server.memory() - before < 300 * 64 * KIB * 1.5


def test_the_rest_of_a_refused_body_is_discarded_so_that_the_client_gets_its_response(server: Attacked) -> None:
    head = b"POST /workers/none/v1/inference HTTP/1.1\r\n" + HOST + b"Connection: close\r\n"
    head += b"Content-Length: 9000000\r\n\r\n"
    assert answer(server, head + b"x" * 9_000_000).startswith(b"HTTP/1.1 404 ")
    assert answer(server, GOOD.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
