"""Accepts connections, as many as there may be, and a few more to refuse."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from rbee_serve.ingress.http_server.connection import Connection

logger = logging.getLogger(__name__)

MAX_SURPLUS = 128
"""Connections over the bound, which get a response. The oldest one is closed for the next one."""
_BURST = 64
"""Connections accepted in one turn of the event loop."""
_RETRY_S = 0.5

MakeConnection = Callable[[bool, Callable[[Connection], None]], Connection]
"""From whether the connection is surplus, and from what to call when it is lost."""


class Acceptor:
    """Accepts on a listening socket while it is not closed. A connection counts from its arrival, so those that never
    complete the TLS handshake count too."""

    def __init__(
        self,
        listening: socket.socket,
        make: MakeConnection,
        max_connections: int,
        handshake_timeout_s: float,
        tls: Callable[[], ssl.SSLContext | None],
    ) -> None:
        self._listening = listening
        self._make = make
        self._max = max_connections
        self._handshake_timeout_s = handshake_timeout_s
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._open: dict[Connection, asyncio.Task[None]] = {}
        self._surplus: deque[Connection] = deque()
        self._retry: asyncio.TimerHandle | None = None
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._loop.add_reader(listening, self._accept)

    def close(self) -> None:
        """Accept the connections that wait, since closing would reset them, and then no more."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listening)
        with suppress(OSError):  # when none waits, or no more can be opened
            for _ in range(self._max):
                self._admit(self._listening.accept()[0])
        self._listening.close()

    async def wait_until_none(self, timeout_s: float) -> None:
        """Return when no connection is open, after `timeout_s` seconds at the latest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._none_open.wait()

    def abort(self) -> None:
        """Close all connections at once."""
        for connection in list(self._open):
            self._abort(connection)

    def _accept(self) -> None:
        for _ in range(_BURST):
            try:
                accepted, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue
            except OSError as exc:  # no file descriptor or no memory is left
                logger.warning("no connection can be accepted for now: %s", exc.strerror)
                self._loop.remove_reader(self._listening)
                self._retry = self._loop.call_later(_RETRY_S, self._loop.add_reader, self._listening, self._accept)
                return
            self._admit(accepted)

    def _admit(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        is_surplus = len(self._open) - len(self._surplus) >= self._max
        self._none_open.clear()
        connection = self._make(is_surplus, self._release)
        self._open[connection] = self._loop.create_task(self._serve(connection, accepted))
        if is_surplus:
            self._surplus.append(connection)
            if len(self._surplus) > MAX_SURPLUS:
                self._abort(self._surplus[0])

    async def _serve(self, connection: Connection, accepted: socket.socket) -> None:
        context = self._tls()
        timeout_s = self._handshake_timeout_s if context else None
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection, accepted, ssl=context, ssl_handshake_timeout=timeout_s
            )
        except BaseException as exc:
            accepted.close()
            self._release(connection)
            if not isinstance(exc, OSError | asyncio.CancelledError):
                raise

    def _abort(self, connection: Connection) -> None:
        if connection.transport is not None:
            connection.transport.abort()
        elif task := self._open.get(connection):
            task.cancel()
        self._release(connection)

    def _release(self, connection: Connection) -> None:
        self._open.pop(connection, None)
        if not self._open:
            self._none_open.set()
        with suppress(ValueError):
            self._surplus.remove(connection)
