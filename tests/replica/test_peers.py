"""Calls from one worker to another, over a handle that is written here."""

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
    """What a handle's call gives: events, then an exception if there is one."""

    def __init__(self, events: Sequence[Event[Any]], failure: Exception | None, pause_s: float) -> None:
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
    def __init__(self, *events: Event[Any], failure: Exception | None = None, pause_s: float = 0.0) -> None:
        self.response = Response(events, failure, pause_s)
        self.asked: list[dict[str, Any]] = []

    def options(self, **options: Any) -> Self:
        assert options == {"stream": True, "method_name": "stream_events"}
        return self

    def remote(self, fields: dict[str, Any], correlation_id: str | None) -> Response:
        self.asked.append(fields)
        return self.response


def events_of(handle: Any) -> AsyncGenerator[Event[Any], None]:
    return peer("speech-0", handle)({"prompt": "x"})


async def read(events: AsyncIterator[Event[Any]]) -> list[Event[Any]]:
    return [event async for event in events]


async def test_its_events_come_as_they_are() -> None:
    handle = Handle(STARTED, Progress(step=1, total=1), END)
    assert await read(events_of(handle)) == [STARTED, Progress(step=1, total=1), END]
    assert handle.asked == [{"prompt": "x"}]
    assert not handle.response.cancelled


async def test_a_refusal_is_raised_as_it_is() -> None:
    with pytest.raises(InsufficientResources, match="full"):
        await read(events_of(Handle(failure=InsufficientResources("full"))))


async def test_a_replica_that_dies_is_a_worker_lost() -> None:
    with pytest.raises(WorkerLost, match="worker speech-0 died"):
        await read(events_of(Handle(STARTED, failure=ActorDiedError())))


async def test_events_that_break_off_are_a_worker_lost() -> None:
    with pytest.raises(WorkerLost, match="worker speech-0 died"):
        await read(events_of(Handle(STARTED)))


async def test_one_that_does_not_answer_is_given_up_and_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "UNANSWERED_CALL_S", 0.05)
    handle = Handle(STARTED, END, pause_s=0.2)
    with pytest.raises(WorkerLost, match="does not answer"):
        await read(events_of(handle))
    await asyncio.sleep(0.3)
    assert handle.response.cancelled


async def test_who_leaves_cancels_the_work() -> None:
    handle = Handle(STARTED, Progress(step=1, total=2), END)
    async with aclosing(events_of(handle)) as events:
        await anext(events)
    assert handle.response.cancelled
