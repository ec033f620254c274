"""One call, and what receivers do to it."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import httpcore
import pytest

from rbee_serve.hub.orchestrator.deadline_network import Deadline, DeadlineBackend, Resolver
from rbee_serve.hub.orchestrator.outbound import CallbackClient, CallbackResult, redacted
from tests.hub.receivers import OK, answering, closed_port, eventually, hang, listening, trickling

TIMEOUT_S = 0.4


def post(url: str) -> tuple[CallbackResult, float]:
    began = time.monotonic()
    return CallbackClient(TIMEOUT_S).post(url, {"a": 1}), time.monotonic() - began


def test_the_message_arrives_as_json() -> None:
    with listening(answering(OK)) as receiver:
        answer, _ = post(receiver.url.replace("//", "//user:p%40ss@") + "/v1/x?y=1")
    assert answer == CallbackResult(status=200)
    assert answer.acknowledged
    head, body = receiver.requests[0].split(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/x?y=1 HTTP/1.1\r\n")
    assert receiver.url.replace("http://", "Host: ").encode() in head
    assert b"Content-Type: application/json" in head
    assert b"Authorization: Basic dXNlcjpwQHNz" in head
    assert body == b'{"a":1}'


@pytest.mark.parametrize(
    ("talk", "trouble"),
    [
        (hang, "timeout"),
        (trickling(b""), "timeout"),
        (trickling(b"HTTP/1.1 200 OK\r\nX-Long: "), "timeout"),
        (trickling(b"HTTP/1.1 200 OK\r\n\r\n"), "timeout"),
        (answering(b""), "broken answer"),
        (answering(b"what do you want?\r\n\r\n"), "broken answer"),
        (answering(b"\x00\xff" * 100_000), "broken answer"),
        (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), "broken answer"),
        (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 10_000_000), "answer too large"),
        (answering(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10_000_000), "answer too large"),
        (answering(b"HTTP/1.1 200 OK\r\nX-Huge: " + b"x" * 10_000_000), "broken answer"),
    ],
)
def test_a_receiver_that_misbehaves_costs_one_word_and_no_more_than_the_deadline(
    talk: Callable[[socket.socket], None], trouble: str
) -> None:
    with listening(talk) as receiver:
        answer, took_s = post(receiver.url)
    assert (answer.status, answer.trouble, answer.acknowledged) == (None, trouble, False)
    assert took_s < TIMEOUT_S + 3


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "http://nobody.invalid", "http://[::1:{port}", "x://y"])
def test_a_receiver_that_is_not_there_is_unreachable(url: str) -> None:
    answer, took_s = post(url.format(port=closed_port()))
    assert answer.trouble in ("unreachable", "timeout")
    assert took_s < TIMEOUT_S + 3


def test_a_name_that_no_name_server_would_take_is_unreachable() -> None:
    assert post(f"http://{'a' * 300}/")[0] == CallbackResult(trouble="unreachable")


def test_tls_that_never_begins_is_over_at_the_deadline() -> None:
    with listening(hang) as receiver:
        answer, took_s = post(receiver.url.replace("http:", "https:"))
    assert answer == CallbackResult(trouble="timeout")
    assert took_s < TIMEOUT_S + 3


def test_a_connection_that_is_open_when_the_deadline_passes_is_closed() -> None:
    with listening(hang) as receiver:
        deadline = Deadline(0.1)
        port = int(receiver.url.rpartition(":")[2])
        stream = DeadlineBackend(Resolver(), deadline).connect_tcp("127.0.0.1", port)
        time.sleep(0.1)
        for late in (
            lambda: stream.read(1),
            lambda: stream.write(b"x"),
            lambda: stream.start_tls(ssl.create_default_context()),
        ):
            with pytest.raises(httpcore.TimeoutException):
                late()
        assert stream.get_extra_info("socket").fileno() == -1


def test_a_redirect_is_not_followed_and_is_no_acknowledgement() -> None:
    with listening(answering(OK)) as other:
        head = f"HTTP/1.1 307 Go\r\nLocation: {other.url}\r\nContent-Length: 0\r\n\r\n"
        with listening(answering(head.encode())) as receiver:
            answer, _ = post(receiver.url)
        assert (answer.status, answer.acknowledged, other.connections) == (307, False, 0)


def test_a_proxy_from_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(answering(OK)) as proxy, listening(answering(OK)) as receiver:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert post(receiver.url)[0].acknowledged
        assert (proxy.connections, receiver.connections) == (0, 1)


def test_a_lookup_that_hangs_is_left_behind_once_and_serves_a_later_call(monkeypatch: pytest.MonkeyPatch) -> None:
    real, lookups, go_on = socket.getaddrinfo, [0], threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        lookups[0] += 1
        go_on.wait(5)
        return real(*arguments, **options)

    with listening(answering(OK)) as receiver:
        outbound = CallbackClient(0.1)
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        for _ in range(3):
            assert outbound.post(receiver.url, {}) == CallbackResult(trouble="timeout")
        assert lookups == [1]
        monkeypatch.setattr(socket, "getaddrinfo", real)
        go_on.set()
        eventually(lambda: outbound.post(receiver.url, {}).acknowledged)


def test_an_address_that_swallows_packets_leaves_time_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    real_connect, real_lookup = socket.create_connection, socket.getaddrinfo

    def connect(address: tuple[str, int], timeout: float, **options: Any) -> socket.socket:
        if address[0] == "192.0.2.1":
            time.sleep(timeout)
            raise TimeoutError
        return real_connect(address, timeout, **options)

    def look_up(host: str, port: int, *arguments: Any, **options: Any) -> Any:
        if host != "two.example":
            return real_lookup(host, port, *arguments, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("192.0.2.1", "127.0.0.1")]

    with listening(answering(OK)) as receiver:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        monkeypatch.setattr(socket, "create_connection", connect)
        assert post(receiver.url.replace("127.0.0.1", "two.example"))[0].acknowledged


def test_a_log_shows_neither_password_nor_query() -> None:
    assert redacted("http://me:secret@hive:9200/v1/ready?token=secret") == "http://hive:9200/v1/ready"
    assert redacted("http://[::1") == "an invalid URL"
