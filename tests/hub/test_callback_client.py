"""One callback, and receivers that misbehave."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rbee_serve.config import OrchestratorConfig
from rbee_serve.hub.orchestrator.callback_client import CallbackClient, CallbackResult, redacted
from rbee_serve.hub.orchestrator.callback_loop import CallbackLoop
from rbee_serve.hub.orchestrator.message_schemas import Heartbeat
from tests.hub.lookups import Lookups
from tests.hub.receivers import OK, answering, closed_port, hang, listening, trickling

TIMEOUT_S = 0.4
HIVE = "http://hive:9200/v1/workers/ready"
MESSAGE = Heartbeat(worker_id="llm-1", timestamp="2026-01-31T12:00:00Z", health_status="healthy")


def post(url: str, times: int = 1) -> tuple[CallbackResult, float]:
    """The last result, and the seconds of all calls."""

    async def calls() -> CallbackResult:
        client = CallbackClient(OrchestratorConfig(callback_url=HIVE, timeout_s=TIMEOUT_S))
        for _ in range(times - 1):
            await client.post(url, MESSAGE)
        return await client.post(url, MESSAGE)

    began = time.monotonic()
    with asyncio.Runner(loop_factory=CallbackLoop) as runner:
        return runner.run(calls()), time.monotonic() - began


def test_the_message_arrives_as_json() -> None:
    with listening(answering(OK)) as receiver:
        result, _ = post(receiver.url.replace("//", "//user:p%40ss@") + "/v1/x?y=1")
    assert result == CallbackResult(status=200)
    assert result.acknowledged
    head, body = receiver.requests[0].split(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/x?y=1 HTTP/1.1\r\n")
    assert receiver.url.replace("http://", "Host: ").encode() in head
    assert b"Content-Type: application/json" in head
    assert b"Authorization: Basic dXNlcjpwQHNz" in head
    assert body == b'{"worker_id":"llm-1","timestamp":"2026-01-31T12:00:00Z","health_status":"healthy"}'


@pytest.mark.parametrize(
    ("talk", "failure"),
    [
        (hang, "timeout"),
        (trickling(b""), "timeout"),
        (trickling(b"HTTP/1.1 200 OK\r\nX-Long: "), "timeout"),
        (trickling(b"HTTP/1.1 200 OK\r\n\r\n"), "timeout"),
        (answering(b""), "broken response"),
        (answering(b"what do you want?\r\n\r\n"), "broken response"),
        (answering(b"\x00\xff" * 100_000), "broken response"),
        (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), "broken response"),
        (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 10_000_000), "response too large"),
        (answering(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10_000_000), "response too large"),
        (answering(b"HTTP/1.1 200 OK\r\nX-Huge: " + b"x" * 10_000_000), "broken response"),
    ],
)
def test_a_receiver_that_misbehaves_is_a_failure_within_the_deadline(
    talk: Callable[[socket.socket], None], failure: str
) -> None:
    with listening(talk) as receiver:
        result, took_s = post(receiver.url)
    assert (result.status, result.failure, result.acknowledged) == (None, failure, False)
    assert took_s < TIMEOUT_S + 3


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "http://nobody.invalid", "http://[::1:{port}", "x://y"])
def test_a_receiver_that_does_not_listen_is_unreachable(url: str) -> None:
    result, took_s = post(url.format(port=closed_port()))
    assert result.failure in ("unreachable", "timeout")
    assert took_s < TIMEOUT_S + 3


def test_a_name_that_dns_would_not_accept_is_unreachable() -> None:
    assert post(f"http://{'a' * 300}/")[0] == CallbackResult(failure="unreachable")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_a_tls_handshake_that_never_ends_is_a_timeout_and_its_connection_is_closed() -> None:
    with listening(hang) as receiver:
        url = receiver.url.replace("http:", "https:")
        post(url)
        open_before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - shorter
        result, took_s = post(url, times=3)
        receiver.close()
        assert len(os.listdir("/proc/self/fd")) <= open_before  # noqa: PTH208
    assert result == CallbackResult(failure="timeout")
    assert took_s < 3 * TIMEOUT_S + 3


def test_a_redirect_is_not_followed_and_is_no_acknowledgement() -> None:
    with listening(answering(OK)) as other:
        head = f"HTTP/1.1 307 Go\r\nLocation: {other.url}\r\nContent-Length: 0\r\n\r\n"
        with listening(answering(head.encode())) as receiver:
            result, _ = post(receiver.url)
        assert (result.status, result.acknowledged, other.connections) == (307, False, 0)


def test_a_cookie_is_not_sent_back() -> None:
    with listening(answering(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")) as receiver:
        post(receiver.url, times=2)
    assert len(receiver.requests) == 2
    assert b"cookie" not in receiver.requests[1].lower()


def test_a_proxy_from_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(answering(OK)) as proxy, listening(answering(OK)) as receiver:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert post(receiver.url)[0].acknowledged
        assert (proxy.connections, receiver.connections) == (0, 1)


def test_a_dns_lookup_that_hangs_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups = Lookups()
    monkeypatch.setattr(socket, "getaddrinfo", lookups.getaddrinfo)
    lookups.hang()
    result, took_s = post("http://hive.example")
    lookups.release()
    assert result == CallbackResult(failure="timeout")
    assert took_s < TIMEOUT_S + 1


def test_an_address_that_drops_packets_leaves_time_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real = CallbackLoop.sock_connect

    async def connect(self: CallbackLoop, sock: socket.socket, address: tuple[str, int]) -> None:
        if address[0] == "192.0.2.1":
            await asyncio.sleep(60)
        await real(self, sock, address)

    def two_addresses(host: object, port: int, *arguments: object, **options: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("192.0.2.1", "127.0.0.1")]

    with listening(answering(OK)) as receiver:
        monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
        monkeypatch.setattr(CallbackLoop, "sock_connect", connect)
        assert post(receiver.url.replace("127.0.0.1", "two.example"))[0].acknowledged


def test_a_log_shows_neither_password_nor_query() -> None:
    assert redacted("http://me:secret@hive:9200/v1/ready?token=secret") == "http://hive:9200/v1/ready"
    assert redacted("http://[::1") == "an invalid URL"
