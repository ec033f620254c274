"""Slow clients on the ingress's own listener: each kind ends in time, and none of them delays another client."""

from __future__ import annotations

import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from tests.ingress.hostile import GOOD, Attacked, attacked, closed, health_of, response_of
from tests.ingress.streaming import LARGE_BYTES
from tests.served.measured import measured

SLOW = 1000
KIB = 1024
BOUND_S = 0.05
"""By how much slow clients may delay the first byte of a good one."""
BODY = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
INFERENCE = BODY.replace(b"/echo", b"/v1/inference")

KINDS: list[tuple[str, bytes]] = [
    ("silent connections", b""),
    ("request lines without an end", b"GET /hea"),
    ("headers without an end", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "),
    ("bodies without an end", INFERENCE + b"{"),
    (
        "chunks without an end",
        b"POST /v1/inference HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    ),
    ("idle connections", GOOD),
    ("readers that take nothing of a stream", b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[Attacked]:
    with attacked({"header_timeout_s": 1, "body_timeout_s": 1}) as server:
        yield server


def typical_first_byte_s(server: Attacked) -> float:
    return statistics.median(server.first_byte_s() for _ in range(15))


@pytest.mark.parametrize(("kind", "sent"), KINDS, ids=[kind for kind, _ in KINDS])
def test_a_thousand_slow_clients_do_not_delay_a_good_one(kind: str, sent: bytes) -> None:
    with attacked({"header_timeout_s": 60, "body_timeout_s": 60}) as server, ExitStack() as stack:
        alone = typical_first_byte_s(server)
        slow = server.connections(SLOW, sent, stack, receive_buffer=4 * KIB)
        server.wait_until_idle()
        _trickle(slow, sent)
        delay_s = max(0.0, typical_first_byte_s(server) - alone)
        measured(f"1,000 {kind}", "delay of another client's first byte", delay_s, BOUND_S)


def _trickle(slow: list[socket.socket], sent: bytes) -> None:
    if sent and sent != GOOD and b"/stream" not in sent:
        for connection in slow:
            connection.send(b"x")


def test_headers_without_an_end_get_408(server: Attacked) -> None:
    began = time.monotonic()
    with server.connect() as connection:
        connection.sendall(b"GET /health HT")
        head, _, body = response_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nx-correlation-id: corr-" in head
    assert json.loads(body) == {
        "code": "HEADER_TIMEOUT",
        "message": "the headers did not arrive in 1 s; send them at once",
        "retriable": True,
    }
    measured("headers without an end", "408 and the connection is closed", time.monotonic() - began, 2.5)


def test_one_byte_at_a_time_does_not_extend_the_time_of_headers(server: Attacked) -> None:
    began = time.monotonic()
    with server.connect() as connection:
        _drip(connection, iter(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200), 0.02)
        assert response_of(connection).startswith(b"HTTP/1.1 408 ")
    measured("headers byte by byte", "408 and the connection is closed", time.monotonic() - began, 2.5)


def _drip(connection: socket.socket, data: Iterator[int], pause_s: float) -> None:
    connection.settimeout(pause_s)
    with suppress(OSError):
        for byte in data:
            connection.sendall(bytes([byte]))
            try:
                connection.recv(1, socket.MSG_PEEK)
                return
            except TimeoutError:
                continue


def test_the_next_request_of_a_connection_has_the_same_time(server: Attacked) -> None:
    with server.connect() as connection:
        assert health_of(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET ")
        assert response_of(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "sent", [b"", b"\r\n", GOOD, GOOD + b"\r\n"], ids=["new", "new, an empty line", "used", "both"]
)
def test_an_idle_connection_is_closed_without_a_response(server: Attacked, sent: bytes) -> None:
    began = time.monotonic()
    with server.connect() as connection:
        connection.sendall(sent)
        received = response_of(connection, 8)
    assert received.count(b"HTTP/1.1 ") == (1 if sent.startswith(b"GET") else 0)
    measured("an idle connection", "it is closed", time.monotonic() - began, 5.0)


@pytest.mark.parametrize("sent", [kind[1] for kind in KINDS[3:5]], ids=["length", "chunks"])
def test_a_body_without_an_end_gets_408(server: Attacked, sent: bytes) -> None:
    began = time.monotonic()
    with server.connect() as connection:
        connection.sendall(sent)
        received = response_of(connection, 10)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"BODY_TIMEOUT" in received
    measured("a body without an end", "408, and then the connection is closed", time.monotonic() - began, 8.0)


def test_a_slow_and_steady_upload_is_not_cut() -> None:
    body = b'{"worker": "echo-0", "prompt": "' + b"x" * 200_000 + b'"}'
    head = b"POST /v1/inference HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    with attacked({"body_timeout_s": 0.5, "min_body_bytes_per_s": 40_000}) as server:
        with server.connect() as connection:
            connection.sendall(head)
            for start in range(0, len(body), 8_000):
                connection.sendall(body[start : start + 8_000])
                time.sleep(0.1)  # 80 kB/s: two and a half seconds
            assert b"BODY_TIMEOUT" not in response_of(connection)
        with server.connect() as connection:
            connection.sendall(head)
            began = time.monotonic()
            sender = threading.Thread(target=_drip, args=(connection, iter(body), 0.01))  # 100 B/s
            sender.start()
            sender.join()
            measured("a body at 100 B/s", "408", time.monotonic() - began, 1.0)
            assert b"BODY_TIMEOUT" in response_of(connection, 10)


def test_what_follows_a_refusal_is_discarded_for_a_moment_only(server: Attacked) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /none HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began < 20:
                connection.sendall(b"400\r\n" + b"x" * KIB + b"\r\n")
                time.sleep(0.01)
    measured("a body after its refusal", "the connection is closed", time.monotonic() - began, 8.0)


@pytest.mark.parametrize("path", [b"/stream", b"/large"])
def test_a_reader_that_takes_nothing_is_cut_and_takes_little_memory(
    path: bytes, run_briefly: Callable[[], Attacked]
) -> None:
    server = run_briefly()
    before = server.memory()
    with ExitStack() as stack:
        began = time.monotonic()
        stalled = server.connections(3, b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path, stack)
        time.sleep(3)
        assert server.memory() - before < 3 * (LARGE_BYTES if path == b"/large" else KIB * KIB) * 1.5
        while len(_open_connections(server)) and time.monotonic() - began < 20:
            time.sleep(0.1)
        assert stalled
        measured(f"a reader that takes nothing of {path.decode()}", "it is cut", time.monotonic() - began, 10.0)


def _open_connections(server: Attacked) -> list[object]:
    return [c for c in server.process.net_connections("tcp") if c.status == "ESTABLISHED"]


@pytest.fixture
def run_briefly() -> Iterator[Callable[[], Attacked]]:
    """A server that waits two seconds for a reader, and not thirty."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(attacked(patience_s=2.0))


def test_a_slow_reader_that_reads_gets_everything(server: Attacked) -> None:
    with server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = 0
        while piece := connection.recv(256 * KIB):
            received += len(piece)
            time.sleep(0.002)
    assert received > LARGE_BYTES


def test_slow_clients_are_gone_after_their_time(server: Attacked) -> None:
    with ExitStack() as stack:
        slow = server.connections(SLOW, b"GET /health HTTP/1.1\r\nX: ", stack)
        began = time.monotonic()
        assert closed(slow, 10) == SLOW
        measured("1,000 slow requests", "all are closed", time.monotonic() - began, 3.0)
