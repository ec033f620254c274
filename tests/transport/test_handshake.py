"""The mutual proof of the token, byte by byte."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from rbee_serve.transport import acceptor as module
from rbee_serve.transport.acceptor import Acceptor
from rbee_serve.transport.client_connection import connect
from rbee_serve.transport.framing import FramedConnection
from rbee_serve.transport.handshake import HANDSHAKE_BYTES, Challenge, Endpoint, Hello, Nonces, Proof, new_nonce
from rbee_serve.transport.request_messages import FromIngress, FromReplica, GoAway, ResetStream, WindowUpdate
from tests.transport.raw_peer import HOST, RawPeer, raw_peer


class Admitted:
    """A handler that records its messages."""

    def __init__(self, connection: FramedConnection[Any]) -> None:
        self.connection = connection
        self.received: list[Any] = []
        self.is_lost = asyncio.Event()

    def receive(self, message: Any) -> None:
        self.received.append(message)

    def lost(self) -> None:
        self.is_lost.set()


class Server:
    """An acceptor, and the connections that it has admitted."""

    def __init__(self) -> None:
        self.admitted: list[Admitted] = []
        self.acceptor: Acceptor[Any] = Acceptor(FromIngress, self._admit)

    def _admit(self, connection: FramedConnection[Any]) -> Admitted:
        self.admitted.append(Admitted(connection))
        return self.admitted[-1]


@asynccontextmanager
async def server_and_endpoint() -> AsyncIterator[tuple[Server, Endpoint]]:
    server = Server()
    try:
        async with asyncio.timeout(10):
            yield server, await server.acceptor.endpoint(HOST)
    finally:
        await server.acceptor.close()
        for admitted in server.admitted:
            admitted.connection.close()
        await asyncio.sleep(0.01)


async def test_both_ends_prove_the_token_and_exchange_messages() -> None:
    async with server_and_endpoint() as (server, endpoint):
        received: list[Any] = []
        closed = asyncio.Event()
        connection = await connect(endpoint, FromReplica, received.append, closed.set)
        connection.send(ResetStream(1))
        await until(lambda: bool(server.admitted and server.admitted[0].received))
        assert server.admitted[0].received == [ResetStream(1)]
        server.admitted[0].connection.send(GoAway())
        await until(lambda: bool(received))
        assert received == [GoAway()]
        server.admitted[0].connection.close()
        await closed.wait()


async def test_a_recorded_handshake_holds_no_token_and_cannot_be_replayed() -> None:
    async with server_and_endpoint() as (server, endpoint):
        sniffed = {"to the acceptor": b"", "to the connector": b""}

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            other_reader, other_writer = await asyncio.open_connection(endpoint.host, endpoint.port)

            async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, direction: str) -> None:
                while data := await source.read(65536):
                    sniffed[direction] += data
                    target.write(data)
                target.close()

            await asyncio.gather(
                copy(reader, other_writer, "to the acceptor"), copy(other_reader, writer, "to the connector")
            )

        sniffer = await asyncio.start_server(relay, HOST, 0)
        port = sniffer.sockets[0].getsockname()[1]
        connection = await connect(Endpoint(HOST, port, endpoint.token), FromReplica, print, lambda: None)
        await until(lambda: bool(server.admitted))
        for data in sniffed.values():
            assert len(data) > 32
            assert endpoint.token.encode() not in data
            assert bytes.fromhex(endpoint.token) not in data
        async with raw_peer(endpoint) as replay:  # the acceptor's nonce is another one now
            replay.write_raw(sniffed["to the acceptor"])
            assert await replay.is_closed_by_the_other_end()
        assert len(server.admitted) == 1
        connection.close()
        await until(lambda: server.admitted[0].is_lost.is_set())
        sniffer.close()
        await sniffer.wait_closed()


def proof(token: str, role: bytes, connector: bytes, acceptor: bytes) -> bytes:
    return hmac.new(token.encode(), role + b"\0" + connector + b"\0" + acceptor, hashlib.sha256).digest()


async def test_a_proof_is_the_hmac_of_the_role_and_both_nonces() -> None:
    async with server_and_endpoint() as (server, endpoint), raw_peer(endpoint) as peer:
        nonce = new_nonce()
        peer.send(Hello(nonce))
        (challenge,) = await peer.receive(Challenge)
        assert challenge.proof == proof(endpoint.token, b"rbee-serve acceptor", nonce, challenge.nonce)
        peer.send(Proof(proof(endpoint.token, b"rbee-serve connector", nonce, challenge.nonce)))
        peer.send(WindowUpdate(1, 2))
        await until(lambda: bool(server.admitted and server.admitted[0].received))


async def wrong_token(peer: RawPeer, endpoint: Endpoint) -> None:
    nonces = await peer.exchange_nonces()
    peer.send(Proof(nonces.connector_proof("0" * 64)))


async def reflection(peer: RawPeer, endpoint: Endpoint) -> None:
    """The acceptor's own proof is sent back."""
    peer.send(Hello(new_nonce()))
    (challenge,) = await peer.receive(Challenge)
    peer.send(Proof(challenge.proof))


async def proof_of_another_connection(peer: RawPeer, endpoint: Endpoint) -> None:
    await peer.exchange_nonces()
    peer.send(Proof(Nonces(new_nonce(), new_nonce()).connector_proof(endpoint.token)))


async def proof_first(peer: RawPeer, endpoint: Endpoint) -> None:
    peer.send(Proof(b""))


async def short_nonce(peer: RawPeer, endpoint: Endpoint) -> None:
    peer.send(Hello(b"short"))


async def two_hellos(peer: RawPeer, endpoint: Endpoint) -> None:
    peer.send(Hello(new_nonce()))
    peer.send(Hello(new_nonce()))


async def a_request(peer: RawPeer, endpoint: Endpoint) -> None:
    peer.send(ResetStream(1))


async def empty_array(peer: RawPeer, endpoint: Endpoint) -> None:
    peer.send([])


async def no_list(peer: RawPeer, endpoint: Endpoint) -> None:
    peer.write(msgspec.msgpack.encode("no list"))


async def garbage(peer: RawPeer, endpoint: Endpoint) -> None:
    peer.write(b"\xc1\xc1\xc1")


async def http(peer: RawPeer, endpoint: Endpoint) -> None:
    peer.write_raw(b"GET / HTTP/1.1\r\n\r\n")


async def frame_above_the_limit(peer: RawPeer, endpoint: Endpoint) -> None:
    peer.write_raw((HANDSHAKE_BYTES + 1).to_bytes(4))


@pytest.mark.parametrize(
    "attack",
    [
        wrong_token, reflection, proof_of_another_connection, proof_first, short_nonce, two_hellos, a_request,
        empty_array, no_list, garbage, http, frame_above_the_limit,
    ],
)  # fmt: skip
async def test_a_failed_handshake_closes_the_connection_with_one_log_line(
    attack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with server_and_endpoint() as (server, endpoint), raw_peer(endpoint) as peer:
        await attack(peer, endpoint)
        peer.send(ResetStream(1))
        assert await peer.is_closed_by_the_other_end()
        assert server.admitted == []
        (record,) = caplog.records
        assert record.getMessage().startswith(f"closed the connection with {peer.address}: ")
        assert endpoint.token not in caplog.text


async def test_a_peer_that_sends_nothing_is_closed_after_the_time_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_S", 0.05)
    async with server_and_endpoint() as (_, endpoint), raw_peer(endpoint) as peer:
        assert await peer.is_closed_by_the_other_end()
        assert len(caplog.records) == 1
        assert "it took too long" in caplog.text


async def test_connections_above_the_limit_are_closed_at_once_with_one_log_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 2)
    async with server_and_endpoint() as (server, endpoint):
        async with raw_peer(endpoint), raw_peer(endpoint):
            for _ in range(3):
                async with raw_peer(endpoint) as refused:
                    assert await refused.is_closed_by_the_other_end()
            assert len(caplog.records) == 1
            assert "2 others have not proven the token" in caplog.text
        await until(lambda: not server.acceptor.pending)
        for _ in range(3):  # connections that have proven the token do not count
            await connect(endpoint, FromReplica, print, lambda: None)
            await until(lambda: not server.acceptor.pending)
        assert len(server.admitted) == 3


async def test_an_acceptor_that_does_not_hold_the_token_gets_no_proof_and_no_message() -> None:
    received = bytearray()

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4 + 1)
        body = msgspec.msgpack.encode([Challenge(new_nonce(), bytes(32))])
        writer.write(len(body).to_bytes(4) + body)
        while data := await reader.read(1000):
            received.extend(data)
        writer.close()

    server = await asyncio.start_server(impostor, HOST, 0)
    endpoint = Endpoint(HOST, server.sockets[0].getsockname()[1], "token")
    with pytest.raises(ConnectionError, match="did not prove the token"):
        await connect(endpoint, FromReplica, print, lambda: None)
    await asyncio.sleep(0.05)
    assert len(received) < 50  # the rest of the Hello
    server.close()
    await server.wait_closed()


async def test_a_wrong_token_is_a_connection_error_for_the_connector() -> None:
    async with server_and_endpoint() as (server, endpoint):
        with pytest.raises(ConnectionError, match="did not prove the token"):
            await connect(Endpoint(HOST, endpoint.port, "0" * 64), FromReplica, print, lambda: None)
        assert server.admitted == []


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
