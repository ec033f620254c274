"""Each way in which a backend's stream can end, and the events that the client gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from rbee_serve.errors import InsufficientVram, InternalError, InvalidRequest, WorkerLost, WorkerUnhealthy
from rbee_serve.events import End, Error, Event, Output, Started, StopReason
from rbee_serve.grammar import check_stream
from rbee_serve.outputs import TokenOutput
from rbee_serve.replica.event_stream import frames, ordered

STARTED = Started(job_id="job-1", model="m", started_at="2026-01-01T00:00:00.000+00:00")
END = End(tokens_out=1, decode_time_ms=1, stop_reason=StopReason.COMPLETE)


def token(i: int, text: str = "a") -> Output[TokenOutput]:
    return Output(TokenOutput(t=text, i=i))


async def body_of(source: AsyncGenerator[Event[Any], None]) -> bytes:
    """The whole response body."""
    chunks = [chunk async for chunk in frames(ordered(STARTED, source))]
    assert [chunk[1] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    return b"".join(chunk[0] for chunk in chunks)


async def last_event(source: AsyncGenerator[Event[Any], None]) -> Event[Any]:
    body = await body_of(source)
    return check_stream(body)[-1]


async def test_a_normal_stream_has_started_outputs_end_and_the_marker() -> None:
    async def source() -> AsyncGenerator[Event[Any], None]:
        yield token(0)
        yield END

    body = await body_of(source())
    assert [type(event).__name__ for event in check_stream(body)] == ["Started", "Output", "End"]
    assert body.endswith(b"\n\ndata: [DONE]\n\n")


async def test_a_worker_error_reaches_the_client_unchanged() -> None:
    async def source() -> AsyncGenerator[Event[Any], None]:
        yield token(0)
        raise InsufficientVram("take fewer pixels")

    assert await last_event(source()) == Error(code="INSUFFICIENT_VRAM", message="take fewer pixels", retriable=True)


async def test_an_error_before_the_first_event_is_a_refusal() -> None:
    async def source() -> AsyncGenerator[Event[Any], None]:
        raise InvalidRequest("the prompt is too long")
        yield token(0)

    with pytest.raises(InvalidRequest, match="too long"):
        await body_of(source())


async def test_a_foreign_exception_before_the_first_event_is_a_refusal_without_its_text() -> None:
    async def source() -> AsyncGenerator[Event[Any], None]:
        raise ValueError("secret at 0xdeadbeef")
        yield token(0)

    with pytest.raises(InternalError) as caught:
        await body_of(source())
    assert "0x" not in caught.value.message


async def test_a_foreign_exception_becomes_a_fixed_message() -> None:
    async def source() -> AsyncGenerator[Event[Any], None]:
        yield token(0)
        raise ValueError("secret at 0xdeadbeef")

    body = await body_of(source())
    assert b"0xdeadbeef" not in body
    assert b'"code":"INTERNAL"' in body
    check_stream(body)


@pytest.mark.parametrize("broken", ["nothing", "outputs_only", "started_again"])
async def test_a_wrong_order_of_events_ends_the_stream_with_an_error(broken: str) -> None:
    async def source() -> AsyncGenerator[Event[Any], None]:
        if broken != "nothing":
            yield token(0)
        if broken == "started_again":
            yield STARTED

    last = await last_event(source())
    assert isinstance(last, Error)
    assert last.code == "INTERNAL"


async def test_nothing_follows_an_end() -> None:
    async def source() -> AsyncGenerator[Event[Any], None]:
        yield END
        yield token(0)

    assert await last_event(source()) == END


async def test_closing_the_stream_closes_the_backend() -> None:
    closed = asyncio.Event()

    async def source() -> AsyncGenerator[Event[Any], None]:
        try:
            yield token(0)
            await asyncio.Event().wait()
        finally:
            closed.set()

    stream = frames(ordered(STARTED, source()))
    await anext(stream)
    await stream.aclose()
    assert closed.is_set()


async def test_an_event_that_cannot_be_encoded_ends_the_stream_with_an_error() -> None:
    async def source() -> AsyncGenerator[Event[Any], None]:
        yield token(0)
        yield Output(TokenOutput(t="a", i=object()))  # type: ignore[arg-type]

    last = await last_event(source())
    assert isinstance(last, Error)
    assert last.code == "INTERNAL"


async def test_a_cancellation_from_elsewhere_is_a_failure_of_the_backend() -> None:
    async def refused() -> AsyncGenerator[Event[Any], None]:
        raise asyncio.CancelledError
        yield token(0)

    async def broken() -> AsyncGenerator[Event[Any], None]:
        yield token(0)
        raise asyncio.CancelledError

    with pytest.raises(InternalError):
        await body_of(refused())
    event = await last_event(broken())
    assert isinstance(event, Error)
    assert event.code == "INTERNAL"


async def test_an_exception_after_the_end_is_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def source() -> AsyncGenerator[Event[Any], None]:
        yield token(0)
        try:
            yield END
        finally:
            raise ValueError("too late")

    assert await last_event(source()) == END
    assert "too late" in caplog.text


async def test_a_backend_that_cannot_go_on_loses_the_request_which_may_be_sent_again() -> None:
    async def source(outputs: int) -> AsyncGenerator[Event[Any], None]:
        for i in range(outputs):
            yield token(i)
        raise WorkerUnhealthy("the engine is broken; try again in a moment")

    last = await last_event(source(1))
    assert isinstance(last, Error)
    assert (last.code, last.retriable) == ("WORKER_LOST", True)
    with pytest.raises(WorkerLost, match="the engine is broken"):
        await anext(ordered(STARTED, source(0)))
