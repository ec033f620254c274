"""The connecting side of a connection, byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from rbee_serve.transport.handshake import Challenge, Endpoint, Hello, Nonces, Proof, new_nonce

HOST = "127.0.0.1"


class RawPeer:
    """Sends what a test wants it to send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        host, port = writer.get_extra_info("sockname")
        self.address = f"{host}:{port}"

    def send(self, *messages: Any) -> None:
        """One frame."""
        self.write(msgspec.msgpack.encode(messages))

    def write(self, body: bytes) -> None:
        """One frame with this body."""
        self.write_raw(len(body).to_bytes(4) + body)

    def write_raw(self, data: bytes) -> None:
        """These bytes."""
        self._writer.write(data)

    async def receive(self, message_types: Any) -> list[Any]:
        """The messages of the next frame."""
        async with asyncio.timeout(5):
            size = int.from_bytes(await self._reader.readexactly(4))
            return list(msgspec.msgpack.decode(await self._reader.readexactly(size), type=list[message_types]))

    async def exchange_nonces(self) -> Nonces:
        """The first half of a handshake."""
        hello = Hello(new_nonce())
        self.send(hello)
        (challenge,) = await self.receive(Challenge)
        return Nonces(hello.nonce, challenge.nonce)

    async def is_closed_by_the_other_end(self) -> bool:
        """Whether the other end closes, after whatever it still sends."""
        async with asyncio.timeout(5):
            with suppress(ConnectionResetError):
                await self._reader.read()
            return True

    async def close(self) -> None:
        """Close."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@asynccontextmanager
async def raw_peer(endpoint: Endpoint) -> AsyncIterator[RawPeer]:
    """A connection before its handshake."""
    peer = RawPeer(*await asyncio.open_connection(endpoint.host, endpoint.port))
    try:
        yield peer
    finally:
        await peer.close()


@asynccontextmanager
async def authenticated_peer(endpoint: Endpoint) -> AsyncIterator[RawPeer]:
    """A connection after its handshake."""
    async with raw_peer(endpoint) as peer:
        nonces = await peer.exchange_nonces()
        peer.send(Proof(nonces.connector_proof(endpoint.token)))
        yield peer
