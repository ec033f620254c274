"""The bound on connections of the ingress's own listener."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack

import pytest

from rbee_serve.ingress.http_server.acceptor import MAX_SURPLUS
from rbee_serve.ingress.http_server.file_limit import RESERVE, allowed_connections
from tests.ingress.hostile import GOOD, Attacked, attacked, closed, response_of
from tests.served.measured import measured, timed

READY = GOOD.replace(b"/health", b"/v1/workers")
STREAM = b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n"


def refusal(server: Attacked) -> tuple[bytes, bytes]:
    with server.connect() as connection:
        connection.sendall(READY)
        head, _, body = response_of(connection).partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize("held", [b"", b"GET /health HT", STREAM], ids=["silent", "slow", "streams"])
def test_a_connection_over_the_bound_gets_503_at_once_and_open_ones_go_on(held: bytes) -> None:
    with attacked({"max_connections": 20}) as server, ExitStack() as stack:
        stream = stack.enter_context(server.connect())
        stream.sendall(STREAM)
        assert stream.recv(12) == b"HTTP/1.1 200"
        server.connections(19, held, stack)
        time.sleep(0.2)
        began = time.monotonic()
        head, body = refusal(server)
        measured("a connection over the bound", "503", time.monotonic() - began, 0.1)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1" in head
        assert b"\r\nconnection: close" in head
        assert b"\r\nx-correlation-id: corr-" in head
        assert json.loads(body)["code"] == "INSUFFICIENT_RESOURCES"
        assert json.loads(body)["retriable"] is True
        events = 0
        while events < 20:
            events += stream.recv(65536).count(b"data: ")


def test_health_is_answered_over_the_bound_too() -> None:
    with attacked({"max_connections": 5}) as server, ExitStack() as stack:
        server.connections(5, STREAM, stack)
        time.sleep(0.2)
        with server.connect() as connection:
            connection.sendall(GOOD)
            assert response_of(connection).startswith(b"HTTP/1.1 200 ")


def test_a_flood_over_the_bound_leaves_place_for_a_refusal_and_for_later_clients() -> None:
    with attacked({"max_connections": 50, "header_timeout_s": 2}) as server, ExitStack() as stack:
        slow = server.connections(600, b"GET /health HT", stack)
        with timed("550 connections over the bound", "503 for another client", 0.1):
            head, _ = refusal(server)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert closed(slow, 8) == 600
        assert server.first_byte_s() < 1


def test_idle_connections_make_room_where_it_is_scarce() -> None:
    with attacked({"max_connections": 20}) as server, ExitStack() as stack:
        server.connections(20, GOOD, stack)
        with timed("idle connections up to the bound", "another client is served", 5.0):
            while not refusal_is_over(server):
                time.sleep(0.1)


def refusal_is_over(server: Attacked) -> bool:
    with server.connect() as connection:
        connection.sendall(READY)
        return connection.recv(12) == b"HTTP/1.1 200"


def test_without_file_descriptors_the_server_goes_on_and_does_not_spin() -> None:
    with attacked({"max_connections": 5000}, open_files=460) as server, ExitStack() as stack:
        for _ in range(600):
            connection = stack.enter_context(socket.socket())
            connection.setblocking(False)
            connection.connect_ex(("127.0.0.1", server.port))
        time.sleep(1)
        before = sum(server.process.cpu_times()[:2])
        time.sleep(2)
        assert sum(server.process.cpu_times()[:2]) - before < 0.5
        stack.close()
        time.sleep(0.5)
        assert server.first_byte_s() < 2


def test_the_bound_is_never_above_what_the_process_may_open(caplog: pytest.LogCaptureFixture) -> None:
    assert allowed_connections(100) == 100
    assert 0 < allowed_connections(None) <= 10_000
    assert allowed_connections(10**9) < 10**9
    assert "the limit on open files allows" in caplog.text
    assert RESERVE > 0 < MAX_SURPLUS
