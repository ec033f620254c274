"""Where others connect who know the way from Ray.

Ray's calls tell a `Endpoint`, with a key in it; who does not show that key first is hung up on.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from rbee_serve.transport.framing import FramedConnection

HELLO_BYTES = 256
"""A frame from somebody who has not shown the key is no longer."""

HELLO_S = 5.0
"""How long a connection may take to show the key."""

MessageT = TypeVar("MessageT")
MessageT_contra = TypeVar("MessageT_contra", contravariant=True)


class Endpoint(msgspec.Struct, frozen=True):
    """Where somebody listens, and what they want to hear first: whoever holds the key has it from Ray."""

    host: str
    port: int
    key: str


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first message of a connection."""

    key: str


class ConnectionHandler(Protocol[MessageT_contra]):
    """What is done for one who has shown the key."""

    def receive(self, message: MessageT_contra) -> None:
        """Called for each message."""

    def lost(self) -> None:
        """Called when the connection is gone."""


class Acceptor(Generic[MessageT]):
    """Listens for those who have the key, one `ConnectionHandler` for each."""

    def __init__(self, heard: Any, admit: Callable[[FramedConnection[MessageT]], ConnectionHandler[MessageT]]) -> None:
        """`heard` are the types of the messages, `Hello` among them; `admit` is called for each connection that has
        shown the key."""
        self._heard = heard
        self._admit = admit
        self._key = secrets.token_hex(32)
        self._listening: dict[str, asyncio.Task[asyncio.Server]] = {}

    async def place(self, host: str) -> Endpoint:
        """Where somebody connects who reaches this machine as `host`. Raises `OSError`."""
        if host not in self._listening:
            self._listening[host] = asyncio.create_task(self._listen(host))
        try:
            server = await asyncio.shield(self._listening[host])
        except OSError:  # the next one who asks has it tried again
            self._listening.pop(host, None)
            raise
        return Endpoint(host, server.sockets[0].getsockname()[1], self._key)

    async def close(self) -> None:
        """Let nobody in any more."""
        for listening in self._listening.values():
            (await listening).close()

    async def _listen(self, host: str) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: _PendingConnection(self._heard, self._key, self._admit).wire, host, 0)


class _PendingConnection(Generic[MessageT]):
    """A connection, with a key or without."""

    def __init__(
        self, heard: Any, key: str, admit: Callable[[FramedConnection[MessageT]], ConnectionHandler[MessageT]]
    ) -> None:
        self.wire: FramedConnection[MessageT] = FramedConnection(heard, self._receive, self._lost, longest=HELLO_BYTES)
        self._key = key
        self._admit = admit
        self._visit: ConnectionHandler[MessageT] | None = None
        self._giving_up = asyncio.get_running_loop().call_later(HELLO_S, self.wire.close)

    def _receive(self, message: MessageT) -> None:
        if self._visit is not None:
            self._visit.receive(message)
        elif isinstance(message, Hello) and hmac.compare_digest(message.key.encode(), self._key.encode()):
            self._giving_up.cancel()
            self.wire.longest = None
            self._visit = self._admit(self.wire)
        else:
            self.wire.close()

    def _lost(self) -> None:
        self._giving_up.cancel()
        if self._visit is not None:
            self._visit.lost()


async def connect(place: Endpoint, wire: FramedConnection[Any]) -> None:
    """Connect the wire, and show the key. Raises `OSError`."""
    await asyncio.get_running_loop().create_connection(lambda: wire, place.host, place.port)
    wire.send(Hello(place.key))
