"""The listening side of connections: admits peers that prove the token of its `Endpoint`."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, cast

from rbee_serve.port_range import ANY_PORT
from rbee_serve.transport.framing import FramedConnection
from rbee_serve.transport.handshake import (
    HANDSHAKE_BYTES,
    HANDSHAKE_S,
    NONCE_BYTES,
    Challenge,
    Endpoint,
    Hello,
    Nonces,
    Proof,
    new_nonce,
)
from rbee_serve.transport.listening_socket import listening_socket

logger = logging.getLogger(__name__)

MAX_PENDING = 64
"""Connections in their handshake at the same time; more are closed at once."""
LOG_PERIOD_S = 60.0
"""Connections that are closed because of `MAX_PENDING` leave at most one line in the log in this time."""

MessageT = TypeVar("MessageT")
MessageT_contra = TypeVar("MessageT_contra", contravariant=True)


class ConnectionHandler(Protocol[MessageT_contra]):
    """Handles one authenticated connection."""

    def receive(self, message: MessageT_contra) -> None:
        """Called for each message."""

    def lost(self) -> None:
        """Called when the connection is gone."""


class Acceptor(Generic[MessageT]):
    """Listens, and makes one `ConnectionHandler` for each connection that has proven the token."""

    def __init__(
        self, message_types: Any, admit: Callable[[FramedConnection[MessageT]], ConnectionHandler[MessageT]]
    ) -> None:
        """`message_types` are received after the handshake; `admit` is called for each connection that passed it."""
        self.message_types = message_types
        self.admit = admit
        self.token = secrets.token_hex(32)
        self.pending: set[object] = set()
        """Connections in their handshake."""
        self._servers: dict[str, asyncio.Task[asyncio.Server]] = {}
        self._next_log_s = 0.0

    async def endpoint(self, host: str, ports: range = ANY_PORT) -> Endpoint:
        """The endpoint for processes that reach this machine as `host`, at the first free port of `ports`. Raises
        `OSError`."""
        if host not in self._servers:
            self._servers[host] = asyncio.create_task(self._listen(host, ports))
        try:
            server = await asyncio.shield(self._servers[host])
        except OSError as exc:  # the next call tries again
            self._servers.pop(host, None)
            logger.error("nothing can connect to this process at %s: %s", host, exc)  # the caller is another process
            raise
        return Endpoint(host, server.sockets[0].getsockname()[1], self.token)

    async def close(self) -> None:
        """Accept no more connections."""
        for server in self._servers.values():
            (await server).close()

    async def _listen(self, host: str, ports: range) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(self._accept, sock=listening_socket(host, ports))

    def _accept(self) -> asyncio.Protocol:
        if len(self.pending) < MAX_PENDING:
            return _PendingConnection(self).connection
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._next_log_s:
            self._next_log_s = now_s + LOG_PERIOD_S
            logger.warning("closed a new connection: %d others have not proven the token", len(self.pending))
        return _Refused()


class _Refused(asyncio.Protocol):
    """A connection above `MAX_PENDING`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        cast("asyncio.Transport", transport).abort()


class _PendingConnection:
    """A connection in its handshake. Each that fails leaves one line in the log."""

    def __init__(self, acceptor: Acceptor[Any]) -> None:
        self.connection: FramedConnection[Any] = FramedConnection(
            Hello | Proof, self._receive, self._on_close, max_frame_bytes=HANDSHAKE_BYTES
        )
        self._acceptor = acceptor
        self._nonces: Nonces | None = None
        self._time_limit = asyncio.get_running_loop().call_later(HANDSHAKE_S, self._fail, "it took too long")
        acceptor.pending.add(self)

    def _receive(self, message: Hello | Proof) -> None:
        if self.connection.aborted:  # by an earlier message of the same frame
            return
        match message:
            case Hello(nonce) if self._nonces is None and len(nonce) == NONCE_BYTES:
                self._nonces = Nonces(nonce, new_nonce())
                proof = self._nonces.acceptor_proof(self._acceptor.token)
                self.connection.send(Challenge(self._nonces.acceptor, proof))
            case Proof(proof) if self._nonces is not None and self._is_valid(proof, self._nonces):
                self._end()
                handler = self._acceptor.admit(self.connection)
                self.connection.expect(self._acceptor.message_types, handler.receive, handler.lost)
            case _:
                self._fail("the peer did not prove the token")

    def _is_valid(self, proof: bytes, nonces: Nonces) -> bool:
        return hmac.compare_digest(proof, nonces.connector_proof(self._acceptor.token))

    def _fail(self, reason: str) -> None:
        self._end()
        self.connection.abort(f"the handshake failed: {reason}")

    def _end(self) -> None:
        self._time_limit.cancel()
        self._acceptor.pending.discard(self)

    def _on_close(self) -> None:
        self._end()
        if not self.connection.aborted:
            logger.info("%s closed its connection before it had proven the token", self.connection.peer)
