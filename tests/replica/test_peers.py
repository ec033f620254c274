"""Calls from one worker to another, over a fake Ray Serve handle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Self

import pytest
from ray.exceptions import ActorDiedError

from rbee_serve.errors import InsufficientResources, WorkerLost
from rbee_serve.events import End, Event, Progress, Started, StopReason
from rbee_serve.replica import peers
from rbee_serve.replica.peers import peer

STARTED = Started(job_id="j", model="m", started_at="now")
END = End(tokens_out=0, decode_time_ms=0, stop_reason=StopReason.COMPLETE)


class Response:
    """The response of a handle's call: events, then an optional exception."""

    def __init__(self, events: Sequence[Event[Any]], failure: BaseException | None, pause_s: float) -> None:
        self._events = iter(events)
        self._failure = failure
        self._pause_s = pause_s
        self.cancelled = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event[Any]:
        await asyncio.sleep(self._pause_s)
        event = next(self._events, None)
        if event is None:
            raise self._failure or StopAsyncIteration
        return event

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    def __init__(self, *events: Event[Any], failure: BaseException | None = None, pause_s: float = 0.0) -> None:
        self.response = Response(events, failure, pause_s)
        self.requests: list[dict[str, Any]] = []

    def options(self, **options: Any) -> Self:
        assert options == {"stream": True, "method_name": "stream_events"}
        return self

    def remote(self, fields: dict[str, Any], correlation_id: str | None) -> Response:
        self.requests.append(fields)
        return self.response


def events_of(handle: Any) -> AsyncGenerator[Event[Any], None]:
    return peer("speech-0", handle)({"prompt": "x"})


async def read(events: AsyncIterator[Event[Any]]) -> list[Event[Any]]:
    return [event async for event in events]


async def test_events_are_passed_through_unchanged() -> None:
    handle = Handle(STARTED, Progress(step=1, total=1), END)
    assert await read(events_of(handle)) == [STARTED, Progress(step=1, total=1), END]
    assert handle.requests == [{"prompt": "x"}]
    assert not handle.response.cancelled


async def test_a_refusal_is_raised_unchanged() -> None:
    with pytest.raises(InsufficientResources, match="full"):
        await read(events_of(Handle(failure=InsufficientResources("full"))))


async def test_a_dead_replica_raises_worker_lost() -> None:
    with pytest.raises(WorkerLost, match="worker speech-0 died"):
        await read(events_of(Handle(STARTED, failure=ActorDiedError())))


async def test_a_stream_without_an_end_raises_worker_lost() -> None:
    with pytest.raises(WorkerLost, match="worker speech-0 died"):
        await read(events_of(Handle(STARTED)))


@pytest.mark.parametrize("events", [[], [STARTED]])
async def test_a_call_that_was_cancelled_elsewhere_raises_worker_lost(events: list[Event[Any]]) -> None:
    with pytest.raises(WorkerLost, match="worker speech-0 died"):
        await read(events_of(Handle(*events, failure=asyncio.CancelledError())))


async def test_a_reader_that_is_cancelled_stays_cancelled() -> None:
    handle = Handle(STARTED, END, pause_s=0.05)
    reader = asyncio.create_task(read(events_of(handle)))
    await asyncio.sleep(0.08)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert handle.response.cancelled


async def test_a_worker_that_does_not_respond_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "UNANSWERED_CALL_S", 0.05)
    handle = Handle(STARTED, END, pause_s=0.2)
    with pytest.raises(WorkerLost, match="does not respond"):
        await read(events_of(handle))
    await asyncio.sleep(0.3)
    assert handle.response.cancelled


async def test_closing_the_events_cancels_the_request() -> None:
    handle = Handle(STARTED, Progress(step=1, total=2), END)
    async with aclosing(events_of(handle)) as events:
        await anext(events)
    assert handle.response.cancelled
