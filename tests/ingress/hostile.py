"""A server to attack: the ingress application behind its own listener, in a process of its own, and raw clients.

python -m tests.ingress.hostile PORT LIMITS TLS PATIENCE_S      limits and TLS as JSON
"""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from rbee_serve.config import LimitsConfig, TlsConfig
from rbee_serve.ingress.http_server import connection_timer
from rbee_serve.ingress.listener import Address, Listener
from tests.conftest import free_port
from tests.ingress.application import application
from tests.ingress.streaming import with_streams

ROOT = Path(__file__).resolve().parents[2]
GOOD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass(frozen=True)
class Attacked:
    """A running server."""

    port: int
    process: psutil.Process

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        """A new connection. `receive_buffer`: bytes that the system takes before anybody reads them."""
        connection = socket.socket()
        connection.settimeout(10)
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def connections(
        self, count: int, sent: bytes, stack: ExitStack, receive_buffer: int | None = None
    ) -> list[socket.socket]:
        """Connections that have sent something; `stack` closes them."""
        opened = [stack.enter_context(self.connect(receive_buffer)) for _ in range(count)]
        for connection in opened:
            connection.sendall(sent)
            connection.setblocking(False)
        return opened

    def wait_until_idle(self) -> None:
        """Return when the server has nothing to do."""
        idle = 0
        while idle < 4:
            before = sum(self.process.cpu_times()[:2])
            time.sleep(0.25)
            idle = idle + 1 if sum(self.process.cpu_times()[:2]) - before < 0.03 else 0

    def memory(self) -> int:
        """Bytes of memory in use."""
        return int(self.process.memory_info().rss)

    def first_byte_s(self, request: bytes = GOOD) -> float:
        """Seconds from connecting until a good client has its first byte."""
        began = time.monotonic()
        with self.connect() as connection:
            connection.sendall(request)
            assert connection.recv(12) == b"HTTP/1.1 200"
        return time.monotonic() - began


@contextmanager
def attacked(
    limits: Mapping[str, Any] | None = None,
    tls: Mapping[str, str] | None = None,
    open_files: int | None = None,
    patience_s: float = connection_timer.MAX_STALLED_READER_S,
) -> Iterator[Attacked]:
    """The server, until the end of the block. `open_files`: its limit on them. `patience_s`: how long it waits for a
    reader."""
    port = free_port()
    options = [str(port), json.dumps(limits or {}), json.dumps(tls), str(patience_s)]
    command = [sys.executable, "-m", "tests.ingress.hostile", *options]
    if open_files is not None:
        command = ["sh", "-c", f'ulimit -n {open_files} && exec "$@"', "sh", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"listening\n"
            yield Attacked(port, psutil.Process(process.pid))
        finally:
            process.kill()


def response_of(connection: socket.socket, timeout_s: float = 5.0) -> bytes:
    """Everything until the server closes the connection; raises `TimeoutError` if it does not."""
    connection.settimeout(timeout_s)
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def health_of(connection: socket.socket, request: bytes = GOOD) -> bytes:
    """The response to a request for the health, which ends with a brace."""
    connection.sendall(request)
    received = b""
    while not received.endswith(b"}"):
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return received


def closed(connections: Sequence[socket.socket], within_s: float) -> int:
    """How many of them the server closes in this time."""
    deadline, count = time.monotonic() + within_s, 0
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                assert isinstance(key.fileobj, socket.socket)
                try:
                    gone = not key.fileobj.recv(65536)
                except ConnectionError:
                    gone = True
                if gone:
                    selector.unregister(key.fileobj)
                    count += 1
    return count


async def _serve(port: int, options: Mapping[str, Any], tls: Mapping[str, str] | None) -> None:
    limits = LimitsConfig(**options)
    Listener(
        with_streams(application(None, limits=limits)),
        Address("127.0.0.1", port, keep_alive_timeout_s=3),
        limits,
        TlsConfig.model_validate(tls) if tls else None,
    )
    print("listening", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    connection_timer.MAX_STALLED_READER_S = float(sys.argv[4])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])))
