"""Receivers on real sockets: the fake hive, and servers of ten lines that misbehave."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn

from rbee_serve.hub.orchestrator.fake_hive import FakeHive, build_hive

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def closed_port() -> int:
    """A port on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def quiet_hive(**misbehaviour: Any) -> FakeHive:
    """A fake hive that prints nothing."""
    return FakeHive(log=lambda line: None, **misbehaviour)


@contextmanager
def running(hive: FakeHive, certificate: Path | None = None) -> Iterator[str]:
    """The URL of a fake hive that runs while the block does, over TLS if it has a `certificate` with its key."""
    config = uvicorn.Config(
        build_hive(hive),
        host="127.0.0.1",
        port=0,
        log_level="critical",
        timeout_graceful_shutdown=1,
        ssl_certfile=certificate,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(5)


def received(hive: FakeHive, path: str) -> list[dict[str, Any]]:
    """The messages to a path."""
    return [json.loads(message.body) for message in hive.messages if message.path == path]


class Listener:
    """A server that calls `talk` with each connection once the request has arrived."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self._talk = talk
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.connections = 0
        self.requests: list[bytes] = []
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Close every connection."""
        for connection in [self._socket, *self._open]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            request = b""
            while not request.endswith(b"}"):
                request += connection.recv(65536) or b"gone }"
            self.requests.append(request)
            self._talk(connection)


@contextmanager
def listening(talk: Callable[[socket.socket], None]) -> Iterator[Listener]:
    """A `Listener` that runs while the block does."""
    listener = Listener(talk)
    try:
        yield listener
    finally:
        listener.close()


def answering(answer: bytes) -> Callable[[socket.socket], None]:
    """Sends `answer` and closes the connection."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(answer)
        connection.close()

    return talk


def hang(connection: socket.socket) -> None:
    """Never responds."""


def trickling(head: bytes) -> Callable[[socket.socket], None]:
    """Sends `head`, and then a byte every 20 ms without end."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)

    return talk


def eventually(condition: Callable[[], object], within_s: float = 5.0) -> None:
    """Wait until `condition` is true."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
