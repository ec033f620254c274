"""When the ingress gives a request up, and how its streams end."""

from __future__ import annotations

import asyncio
import enum
import gc
import time
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from rbee_serve.errors import InternalError, InvalidRequest, WorkerLost, WorkerStopping
from rbee_serve.ingress import router as module
from rbee_serve.ingress.router import Router, UpstreamResponse
from rbee_serve.request import InferenceRequest
from rbee_serve.sse import KEEP_ALIVE
from rbee_serve.transport.handshake import Endpoint
from rbee_serve.transport.request_messages import ResponseChunk
from rbee_serve.transport.request_server import _Stream
from rbee_serve.transport.response_stream import ResponseStream
from rbee_serve.validation.parse import parse_object
from tests.ingress.deployment_handle import Handle, Work, soon

ACKNOWLEDGE_S = 0.5


async def done(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
    yield b"data: [DONE]\n\n", True


async def endless(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
    while True:
        yield b"data: 1\n\n", False
        await asyncio.sleep(0.001)


class SlowHandle(Handle):
    """A deployment handle that finds its replica after `delay_s` seconds."""

    def __init__(self, delay_s: float, work: Work = done) -> None:
        super().__init__(work)
        self.delay_s = delay_s

    async def reach(self) -> Endpoint:
        await asyncio.sleep(self.delay_s)
        return await super().reach()


def router_to(handle: Any, timeout_s: float = ACKNOWLEDGE_S, *, balanced: bool = False) -> Router:
    return Router({"echo-0": handle}, timeout_s, balanced=["echo-0"] if balanced else [])


async def send(router: Router) -> None:
    (await router.send("echo-0", InferenceRequest(), "corr")).close()


@pytest.mark.parametrize("balanced", [True, False])
async def test_a_request_without_an_acknowledgement_in_time_is_a_worker_lost(balanced: bool) -> None:
    handle = SlowHandle(30)
    began = time.monotonic()
    with pytest.raises(WorkerLost, match="does not answer"):
        await send(router_to(handle, balanced=balanced))
    assert ACKNOWLEDGE_S <= time.monotonic() - began < ACKNOWLEDGE_S + 1
    await handle.close()


@pytest.mark.parametrize("balanced", [True, False])
async def test_a_replica_that_ray_serve_finds_in_time_gets_the_request(balanced: bool) -> None:
    handle = SlowHandle(ACKNOWLEDGE_S / 2)
    await send(router_to(handle, balanced=balanced))
    await handle.close()


@pytest.mark.parametrize("balanced", [True, False])
async def test_a_request_that_waits_for_a_replica_ends_at_once_when_the_worker_is_lost(balanced: bool) -> None:
    handle = SlowHandle(30)
    router = router_to(handle, timeout_s=30, balanced=balanced)
    waiting = [asyncio.create_task(send(router)) for _ in range(3)]
    await asyncio.sleep(0.02)
    router.fail_unacknowledged("another")
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    router.fail_unacknowledged("echo-0")
    async with asyncio.timeout(1):
        errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(error) for error in errors} == {WorkerLost}
    await handle.close()


async def test_losing_the_worker_leaves_acknowledged_requests_to_their_connection() -> None:
    handle = SlowHandle(0, endless)
    router = router_to(handle)
    response = await router.send("echo-0", InferenceRequest(), "corr")
    router.fail_unacknowledged("echo-0")
    chunks = response.chunks()
    assert b"error" not in await anext(chunks) + await anext(chunks)
    response.close()
    await chunks.aclose()
    await handle.close()


async def test_a_replica_that_hangs_with_the_connection_open_costs_the_timeout_only() -> None:
    handle = SlowHandle(0)
    router = router_to(handle)
    await send(router)
    (ingress,) = handle.replica._connections
    ingress.connection._on_message = lambda message: None  # a process that is stopped reads nothing
    began = time.monotonic()
    with pytest.raises(WorkerLost, match="does not answer"):
        await send(router)
    assert time.monotonic() - began < ACKNOWLEDGE_S + 1
    await handle.close()


async def test_a_replica_that_dies_before_its_acknowledgement_is_noticed_at_once() -> None:
    handle = SlowHandle(0)
    router = router_to(handle, timeout_s=30)
    await send(router)
    (ingress,) = handle.replica._connections
    ingress.connection._on_message = lambda message: None
    waiting = asyncio.create_task(send(router))
    await asyncio.sleep(0.02)
    handle.kill()
    async with asyncio.timeout(1):
        with pytest.raises(WorkerLost, match="died with the request on it"):
            await waiting
    await handle.close()


async def test_an_integer_beyond_64_bits_is_an_invalid_request() -> None:
    class Unbounded(InferenceRequest):
        seed: int

    handle = SlowHandle(0)
    with pytest.raises(InvalidRequest, match="64 bits"):
        await router_to(handle).send("echo-0", Unbounded(seed=2**64), "corr")
    await handle.close()


class Mode(enum.Enum):
    FAST = "fast"


class Structured(InferenceRequest):
    """Fields of types that MessagePack does not have."""

    mode: Mode
    size: tuple[int, int]
    names: dict[int, str]
    sent_at: datetime
    image: bytes
    seed: Annotated[int, Field(le=2**64 - 1)]
    offset: int


async def test_a_request_arrives_equal_whatever_the_types_of_its_fields() -> None:
    arrived: list[Structured] = []

    async def work(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        arrived.append(parse_object(Structured, fields, strict=False))
        yield b"data: [DONE]\n\n", True

    request = Structured(
        mode=Mode.FAST,
        size=(1, 2),
        names={1: "one"},
        sent_at=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
        image=bytes(range(256)),
        seed=2**64 - 1,
        offset=-(2**63),
    )
    handle = SlowHandle(0, work)
    (await router_to(handle).send("echo-0", request, "corr")).close()
    assert arrived == [request]
    await handle.close()


async def test_a_request_that_cannot_be_encoded_is_an_internal_error_and_disturbs_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class WithPath(InferenceRequest):
        path: Path

    handle = SlowHandle(0)
    router = router_to(handle)
    for _ in range(2):
        with pytest.raises(InternalError):
            await router.send("echo-0", WithPath(path=Path("secret")), "corr")
        await send(router)
    assert "Path" in caplog.text
    assert "secret" not in caplog.text
    await handle.close()


async def test_a_long_pause_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.01)

    async def slow(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        yield b"data: 1\n\n", False
        await asyncio.sleep(0.05)
        yield b"data: [DONE]\n\n", True

    handle = SlowHandle(0, slow)
    response = await router_to(handle).send("echo-0", InferenceRequest(), "corr")
    chunks = [chunk async for chunk in response.chunks()]
    response.close()
    assert chunks.count(KEEP_ALIVE) >= 2
    assert [chunk for chunk in chunks if chunk != KEEP_ALIVE] == [b"data: 1\n\n", b"data: [DONE]\n\n"]
    await handle.close()


async def test_an_abort_ends_an_open_stream_with_an_error_event() -> None:
    handle = SlowHandle(0, endless)
    router = router_to(handle)
    response = await router.send("echo-0", InferenceRequest(), "corr")
    router.abort()
    data = b"".join([chunk async for chunk in response.chunks()])
    assert data.endswith(b"data: [DONE]\n\n")
    assert b"the server is being shut down" in data
    response.close()
    await soon(lambda: handle.running == 0)
    await handle.close()


@pytest.mark.parametrize("acknowledged", [True, False])
async def test_an_abort_ends_requests_without_first_data(acknowledged: bool) -> None:
    async def silent(fields: dict[str, Any]) -> AsyncGenerator[ResponseChunk, None]:
        await asyncio.Event().wait()
        yield b"", True

    handle = SlowHandle(0 if acknowledged else 30, silent)
    router = router_to(handle, timeout_s=30)
    waiting = asyncio.create_task(send(router))
    if acknowledged:
        await soon(lambda: handle.running == 1)
    await asyncio.sleep(0.02)
    router.abort()
    async with asyncio.timeout(1):
        with pytest.raises(WorkerStopping, match="the server is being shut down"):
            await waiting
    await soon(lambda: handle.running == 0)
    await handle.close()


@pytest.mark.parametrize("work", [done, endless])
async def test_a_closed_response_is_freed_without_the_garbage_collector(work: Work) -> None:
    handle = SlowHandle(0, work)
    router = router_to(handle)
    gc.collect()
    gc.disable()
    before = len(kept())
    try:
        response = await router.send("echo-0", InferenceRequest(), "corr")
        response.close()
        del response
        await soon(lambda: handle.running == 0)
        await asyncio.sleep(0)
        assert len(kept()) == before
    finally:
        gc.enable()
    await handle.close()


def kept() -> list[object]:
    """All response objects in memory. `isinstance` would read `__class__` of each object: some of torch then warn."""
    return [thing for thing in gc.get_objects() if type(thing) in (UpstreamResponse, ResponseStream, _Stream)]
