"""The connecting side of connections: handshake, pending calls, and reconnection after a loss."""

from __future__ import annotations

import asyncio
import hmac
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Generic, TypeVar

from rbee_serve.config import LOCAL_HOSTS
from rbee_serve.port_range import VARIABLE
from rbee_serve.transport.cancellation import is_own_cancellation
from rbee_serve.transport.framing import FramedConnection
from rbee_serve.transport.handshake import (
    HANDSHAKE_BYTES,
    HANDSHAKE_S,
    Challenge,
    Endpoint,
    Hello,
    Nonces,
    Proof,
    new_nonce,
)

MessageT = TypeVar("MessageT")
PendingT = TypeVar("PendingT")


class ClientConnection(ABC, Generic[MessageT, PendingT]):
    """A connection to an `Acceptor`, and the calls that wait for messages from it. A subclass sets `message_types`."""

    message_types: ClassVar[Any]

    def __init__(self) -> None:
        self.pending: dict[int, PendingT] = {}
        """By stream id."""
        self.usable = True
        """Whether the peer takes new streams, as far as is known."""
        self._connection: FramedConnection[MessageT]

    async def open(self, endpoint: Endpoint) -> None:
        """Connect and authenticate. To be called once. Raises `OSError`."""
        self._connection = await connect(endpoint, self.message_types, self._receive, self._on_close)

    def close(self) -> None:
        """Send what is unsent, then close."""
        self.usable = False
        self._connection.close()

    @abstractmethod
    def _receive(self, message: MessageT) -> None:
        """Called for each message."""

    @abstractmethod
    def _fail(self, pending: PendingT, error: ConnectionError) -> None:
        """Called for each pending call when the connection is lost."""

    def _on_close(self) -> None:
        self.usable = False
        pending, self.pending = self.pending, {}
        for waiting in pending.values():
            self._fail(waiting, ConnectionError("the connection was lost"))


ClientT = TypeVar("ClientT", bound=ClientConnection[Any, Any])


class OnDemand(Generic[ClientT]):
    """At most one connection: opened by the first call, and again by the first call after it was lost."""

    def __init__(self, open_connection: Callable[[], Awaitable[ClientT]]) -> None:
        self._open_connection = open_connection
        self._opening: asyncio.Task[ClientT] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the next call opens another connection."""
        opening = self._opening
        if opening is None or not opening.done():
            return opening is None
        return opening.cancelled() or opening.exception() is not None or not opening.result().usable

    async def get(self) -> ClientT:
        """The connection. Raises what opening it raises; `ConnectionError` if that was cancelled."""
        if self._opening is None or self.is_over:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(_retrieve_exception)
        try:
            return await asyncio.shield(self._opening)
        except asyncio.CancelledError as exc:
            if is_own_cancellation(exc):
                raise
            raise ConnectionError("the connection was cancelled while it was opened") from exc

    def close(self) -> None:
        """Close the connection if there is one."""
        if self._opening is None:
            return
        if self.is_over or not self._opening.done():
            self._opening.cancel()
        else:
            self._opening.result().close()

    async def _open(self) -> ClientT:
        return await self._open_connection()


async def connect(
    endpoint: Endpoint, message_types: Any, on_message: Callable[[Any], None], on_close: Callable[[], None]
) -> FramedConnection[Any]:
    """A connection to `endpoint` on which both ends have proven the token. Raises `ConnectionError`, which names the
    address and the port where there is no connection."""
    loop = asyncio.get_running_loop()
    challenged: asyncio.Future[Challenge] = loop.create_future()

    def on_handshake_close() -> None:
        if not challenged.done():
            challenged.set_exception(ConnectionError("the connection was lost in its handshake"))

    def on_challenge(challenge: Challenge) -> None:
        if not challenged.done():
            challenged.set_result(challenge)

    connection: FramedConnection[Any] = FramedConnection(
        Challenge, on_challenge, on_handshake_close, max_frame_bytes=HANDSHAKE_BYTES
    )
    try:
        async with asyncio.timeout(HANDSHAKE_S):
            await _open_socket(connection, endpoint)
            hello = Hello(new_nonce())
            connection.send(hello)
            challenge = await challenged
            nonces = Nonces(hello.nonce, challenge.nonce)
            if not hmac.compare_digest(challenge.proof, nonces.acceptor_proof(endpoint.token)):
                raise ConnectionError(f"{connection.peer} did not prove the token")
            if connection.closed:
                raise ConnectionError("the connection was lost in its handshake")
    except TimeoutError as exc:
        connection.close()
        raise _no_connection(endpoint, f"no response within {HANDSHAKE_S:g} s") from exc
    except BaseException:
        connection.close()
        raise
    connection.expect(message_types, on_message, on_close)
    connection.send(Proof(nonces.connector_proof(endpoint.token)))
    connection.flush()  # a frame of its own: the acceptor decodes no other message before it
    return connection


async def _open_socket(connection: FramedConnection[Any], endpoint: Endpoint) -> None:
    try:
        await asyncio.get_running_loop().create_connection(lambda: connection, endpoint.host, endpoint.port)
    except OSError as exc:
        raise _no_connection(endpoint, os.strerror(exc.errno).lower() if exc.errno else "unreachable") from exc


def _no_connection(endpoint: Endpoint, reason: str) -> ConnectionError:
    """The error for the log of this process: where nothing could be connected, and what may be in the way."""
    sentence = f"no connection to {endpoint.host}:{endpoint.port} ({reason})"
    if endpoint.host not in LOCAL_HOSTS:
        sentence += f"; if a firewall is between the nodes, let a range of ports through and set {VARIABLE} to it"
    return ConnectionError(sentence)


def _retrieve_exception(opening: asyncio.Task[Any]) -> None:
    """Keep asyncio from logging an exception that no call waited for."""
    if not opening.cancelled():
        opening.exception()
