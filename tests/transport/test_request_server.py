"""What a replica says over a connection, and to whom."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from rbee_serve.transport import acceptor as module
from rbee_serve.transport.acceptor import HELLO_BYTES, Endpoint, Hello
from rbee_serve.transport.request_messages import Chunk, FromReplica, RequestAck, ResetStream, StartRequest
from rbee_serve.transport.request_server import RequestServer

HOST = "127.0.0.1"
NUMBER = 3


class Ingress:
    """The other end, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def say(self, *messages: Any) -> None:
        self.write(msgspec.msgpack.encode(messages))

    def write(self, body: bytes) -> None:
        self._writer.write(len(body).to_bytes(4) + body)

    async def hear(self) -> list[FromReplica]:
        """The messages of the next frame."""
        async with asyncio.timeout(5):
            size = int.from_bytes(await self._reader.readexactly(4))
            return msgspec.msgpack.decode(await self._reader.readexactly(size), type=list[FromReplica])

    async def is_hung_up(self) -> bool:
        async with asyncio.timeout(5):
            return await self._reader.read() == b""

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


@asynccontextmanager
async def connected(replica: RequestServer, key: str | None = None) -> AsyncIterator[Ingress]:
    """A connection to a replica, which has heard the key."""
    place = await replica.entrance.place(HOST)
    ingress = Ingress(*await asyncio.open_connection(place.host, place.port))
    ingress.say(Hello(place.key if key is None else key))
    try:
        yield ingress
    finally:
        await ingress.close()
        await replica.close(0)


def ask(number: int = NUMBER, fields: dict[str, Any] | None = None) -> StartRequest:
    return StartRequest(number, pickle.dumps(fields or {}), "corr")


async def never(fields: dict[str, Any]) -> AsyncGenerator[Any, None]:
    pytest.fail("a request was worked on")
    yield


async def test_the_acknowledgement_leaves_before_the_work_begins_and_what_is_ready_leaves_together() -> None:
    go = asyncio.Event()

    async def work(fields: dict[str, Any]) -> AsyncGenerator[Any, None]:
        yield b"a", False
        await go.wait()
        for _ in range(100):
            yield b"b", False
        yield b"c", True

    async with connected(RequestServer(work)) as ingress:
        ingress.say(ask(1), ask(2))
        assert await ingress.hear() == [RequestAck(1), RequestAck(2)]
        assert await ingress.hear() == [Chunk(1, b"a", False), Chunk(2, b"a", False)]
        go.set()
        heard = await ingress.hear()
        assert [
            b"".join(part.data for part in heard if isinstance(part, Chunk) and part.number == n) for n in (1, 2)
        ] == [100 * b"b" + b"c"] * 2


async def test_a_document_has_its_media_type() -> None:
    async def work(fields: dict[str, Any]) -> AsyncGenerator[Any, None]:
        yield fields["data"], True, "audio/wav"

    async with connected(RequestServer(work)) as ingress:
        ingress.say(ask(fields={"data": b"\x00" * 3_000_000}))
        assert await ingress.hear() == [RequestAck(NUMBER)]
        assert await ingress.hear() == [Chunk(NUMBER, b"\x00" * 3_000_000, True, "audio/wav")]


@pytest.mark.parametrize("how", ["leave", "hang up"])
async def test_work_is_stopped_when_nobody_wants_it(how: str) -> None:
    stopped = asyncio.Event()

    async def work(fields: dict[str, Any]) -> AsyncGenerator[Any, None]:
        try:
            yield b"a", False
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with connected(RequestServer(work)) as ingress:
        ingress.say(ask())
        await ingress.hear()
        await ingress.hear()
        if how == "leave":
            ingress.say(ResetStream(NUMBER), ResetStream(99))
        else:
            await ingress.close()
        async with asyncio.timeout(5):
            await stopped.wait()


@pytest.mark.parametrize(
    "first",
    [
        [Hello("wrong")],
        [Hello("")],
        [ask()],
        [ResetStream(NUMBER)],
        [[0]],
        [["no message"]],
        "no list",
    ],
)
async def test_who_does_not_show_the_key_is_hung_up_on_and_what_follows_is_not_read(first: Any) -> None:
    replica = RequestServer(never)
    place = await replica.entrance.place(HOST)
    ingress = Ingress(*await asyncio.open_connection(place.host, place.port))
    ingress.write(msgspec.msgpack.encode([*first, ask()] if isinstance(first, list) else first))
    ingress.say(ask())
    assert await ingress.is_hung_up()
    await ingress.close()
    await replica.close(0)


@pytest.mark.parametrize("frame", [b"\xff\xff\xff\xff", (HELLO_BYTES + 1).to_bytes(4), b"\x00\x00\x00\x03\xc1\xc1\xc1"])
async def test_a_stranger_s_frame_is_neither_waited_for_nor_kept(frame: bytes) -> None:
    replica = RequestServer(never)
    place = await replica.entrance.place(HOST)
    reader, writer = await asyncio.open_connection(place.host, place.port)
    writer.write(frame)
    async with asyncio.timeout(5):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
    writer.close()
    await replica.close(0)


async def test_who_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELLO_S", 0.05)
    replica = RequestServer(never)
    place = await replica.entrance.place(HOST)
    ingress = Ingress(*await asyncio.open_connection(place.host, place.port))
    assert await ingress.is_hung_up()
    await ingress.close()
    await replica.close(0)


async def test_ingresses_on_the_same_machine_are_told_the_same_place_and_each_replica_has_its_own() -> None:
    one, other = RequestServer(never), RequestServer(never)
    places: list[Endpoint] = await asyncio.gather(
        *(one.entrance.place(HOST) for _ in range(3)), other.entrance.place(HOST)
    )
    assert len({place.port for place in places[:3]}) == len({place.key for place in places[:3]}) == 1
    assert (places[3].port, places[3].key) != (places[0].port, places[0].key)
    await asyncio.gather(one.close(0), other.close(0))


async def test_a_host_at_which_nobody_can_listen_is_an_error_each_time_and_no_hindrance_at_the_end() -> None:
    replica = RequestServer(never)
    for _ in range(2):
        with pytest.raises(OSError, match="bind"):
            await replica.entrance.place("203.0.113.1")
    assert (await replica.entrance.place(HOST)).host == HOST
    await replica.close(0)
