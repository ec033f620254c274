"""The replica's end of a connection to an ingress."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rbee_serve.sse import DONE
from rbee_serve.transport import request_server as module
from rbee_serve.transport.handshake import Endpoint
from rbee_serve.transport.request_messages import (
    WINDOW_BYTES,
    Chunk,
    FromReplica,
    GoAway,
    RequestAck,
    ResetStream,
    StartRequest,
    WindowUpdate,
)
from rbee_serve.transport.request_server import RequestServer
from tests.transport.raw_peer import HOST, RawPeer, authenticated_peer

STREAM_ID = 3


@asynccontextmanager
async def connected(replica: RequestServer) -> AsyncIterator[RawPeer]:
    """An ingress with a connection to a replica."""
    try:
        async with authenticated_peer(await replica.acceptor.endpoint(HOST)) as ingress:
            yield ingress
    finally:
        await replica.close(0)


def start(stream_id: int = STREAM_ID, fields: dict[str, Any] | None = None) -> StartRequest:
    return StartRequest(stream_id, fields or {}, "corr")


async def never(fields: dict[str, Any]) -> AsyncGenerator[Any, None]:
    pytest.fail("a request was worked on")
    yield


async def test_the_acknowledgement_precedes_the_work_and_ready_chunks_share_a_frame() -> None:
    go = asyncio.Event()

    async def work(fields: dict[str, Any]) -> AsyncGenerator[Any, None]:
        yield b"a", False
        await go.wait()
        for _ in range(100):
            yield b"b", False
        yield b"c", True

    async with connected(RequestServer(work)) as ingress:
        ingress.send(start(1), start(2))
        assert await ingress.receive(FromReplica) == [RequestAck(1), RequestAck(2)]
        assert await ingress.receive(FromReplica) == [Chunk(1, b"a", False), Chunk(2, b"a", False)]
        go.set()
        received = await ingress.receive(FromReplica)
        assert [
            b"".join(chunk.data for chunk in received if isinstance(chunk, Chunk) and chunk.stream_id == n)
            for n in (1, 2)
        ] == [100 * b"b" + b"c"] * 2


async def test_a_document_has_its_media_type() -> None:
    async def work(fields: dict[str, Any]) -> AsyncGenerator[Any, None]:
        yield fields["data"], True, "audio/wav"

    async with connected(RequestServer(work)) as ingress:
        ingress.send(start(fields={"data": b"\x00" * 3_000_000}))
        assert await ingress.receive(FromReplica) == [RequestAck(STREAM_ID)]
        assert await ingress.receive(FromReplica) == [Chunk(STREAM_ID, b"\x00" * 3_000_000, True, "audio/wav")]


@pytest.mark.parametrize("how", ["reset", "disconnect"])
async def test_a_reset_and_a_lost_connection_cancel_the_request(how: str) -> None:
    cancelled = asyncio.Event()

    async def work(fields: dict[str, Any]) -> AsyncGenerator[Any, None]:
        try:
            yield b"a", False
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with connected(RequestServer(work)) as ingress:
        ingress.send(start())
        await ingress.receive(FromReplica)
        await ingress.receive(FromReplica)
        if how == "reset":
            ingress.send(ResetStream(STREAM_ID), ResetStream(99))
        else:
            await ingress.close()
        async with asyncio.timeout(5):
            await cancelled.wait()


async def test_fields_that_are_no_map_close_the_connection_without_any_work() -> None:
    replica = RequestServer(never)
    async with connected(replica) as ingress:
        ingress.send([1, STREAM_ID, b"\x80\x04N.", "corr"])  # a pickle, as earlier versions sent it
        assert await ingress.is_closed_by_the_other_end()


async def test_ingresses_on_one_machine_get_one_endpoint_and_each_replica_has_its_own() -> None:
    one, other = RequestServer(never), RequestServer(never)
    endpoints: list[Endpoint] = await asyncio.gather(
        *(one.acceptor.endpoint(HOST) for _ in range(3)), other.acceptor.endpoint(HOST)
    )
    assert len(set(endpoints[:3])) == 1
    assert endpoints[3].port != endpoints[0].port
    assert endpoints[3].token != endpoints[0].token
    await asyncio.gather(one.close(0), other.close(0))


async def test_an_address_without_a_free_port_is_an_error_each_time_and_does_not_disturb_the_close() -> None:
    replica = RequestServer(never)
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        for _ in range(2):
            with pytest.raises(OSError, match="is taken"):
                await replica.acceptor.endpoint("127.0.0.2", range(port, port + 1))
    assert (await replica.acceptor.endpoint(HOST)).host == HOST
    await replica.close(0)


async def events_until_the_end(ingress: RawPeer) -> bytes:
    """The data of the stream, to its end."""
    data = b""
    while True:
        for message in await ingress.receive(FromReplica):
            if isinstance(message, Chunk):
                data += message.data
                if message.end_of_stream:
                    return data


async def test_a_reader_that_takes_nothing_ends_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STALLED_READER_S", 0.05)
    monkeypatch.setattr(module, "MIN_READ_BYTES_PER_S", 1e9)
    closed = asyncio.Event()

    async def work(fields: dict[str, Any]) -> AsyncGenerator[Any, None]:
        try:
            while True:
                yield b"x" * WINDOW_BYTES, False
        finally:
            closed.set()

    async with connected(RequestServer(work)) as ingress:
        ingress.send(start())
        data = await events_until_the_end(ingress)
        assert b"the client stopped reading its response" in data
        assert b'"INFERENCE_TIMEOUT"' in data
        assert data.endswith(DONE)
        assert closed.is_set()


async def test_a_slow_reader_that_goes_on_reading_keeps_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STALLED_READER_S", 0.5)
    monkeypatch.setattr(module, "MIN_READ_BYTES_PER_S", 1e9)

    async def work(fields: dict[str, Any]) -> AsyncGenerator[Any, None]:
        yield b"x" * 2 * WINDOW_BYTES, False
        yield DONE, True

    async with connected(RequestServer(work)) as ingress:
        ingress.send(start())
        for _ in range(8):  # 0.8 s in all
            await asyncio.sleep(0.1)
            ingress.send(WindowUpdate(STREAM_ID, WINDOW_BYTES // 8))
        assert (await events_until_the_end(ingress)).endswith(DONE)


async def test_a_cancellation_from_elsewhere_ends_the_stream_with_an_error() -> None:
    async def work(fields: dict[str, Any]) -> AsyncGenerator[Any, None]:
        yield b"a", False
        raise asyncio.CancelledError

    async with connected(RequestServer(work)) as ingress:
        ingress.send(start())
        data = await events_until_the_end(ingress)
        assert b'"INTERNAL"' in data
        assert data.endswith(DONE)


async def test_an_exception_after_the_end_of_the_stream_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def work(fields: dict[str, Any]) -> AsyncGenerator[Any, None]:
        yield b"end", True
        raise ValueError("too late")

    async with connected(RequestServer(work)) as ingress:
        ingress.send(start(1))
        assert await events_until_the_end(ingress) == b"end"
        ingress.send(start(2))
        assert await ingress.receive(FromReplica) == [RequestAck(2)]
    assert "too late" in caplog.text


async def test_a_request_that_crosses_goaway_is_completed() -> None:
    async def work(fields: dict[str, Any]) -> AsyncGenerator[Any, None]:
        await asyncio.sleep(fields["seconds"])
        yield b"end", True

    replica = RequestServer(work)
    async with connected(replica) as ingress:
        ingress.send(start(1, {"seconds": 0.05}))
        assert await ingress.receive(FromReplica) == [RequestAck(1)]
        closing = asyncio.create_task(replica.close(5))
        assert await ingress.receive(FromReplica) == [GoAway()]
        ingress.send(start(2, {"seconds": 0.3}))
        received: list[Any] = []
        while len(received) < 3:
            received += await ingress.receive(FromReplica)
        assert received == [RequestAck(2), Chunk(1, b"end", True), Chunk(2, b"end", True)]
        await closing


async def test_the_close_of_a_replica_takes_at_most_its_time_limit() -> None:
    async def work(fields: dict[str, Any]) -> AsyncGenerator[Any, None]:
        await asyncio.Event().wait()
        yield b"end", True

    replica = RequestServer(work)
    async with connected(replica) as ingress:
        ingress.send(start())
        await ingress.receive(FromReplica)
        async with asyncio.timeout(2):
            await replica.close(0.2)
        assert await ingress.is_closed_by_the_other_end()


async def test_a_connection_to_a_stopping_replica_gets_goaway() -> None:
    replica = RequestServer(never)
    endpoint = await replica.acceptor.endpoint(HOST)
    closing = asyncio.create_task(replica.close(5))
    await asyncio.sleep(0)
    async with authenticated_peer(endpoint) as ingress:
        assert await ingress.receive(FromReplica) == [GoAway()]
        await closing
