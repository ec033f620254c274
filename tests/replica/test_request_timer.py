"""The end of a request from outside: by its deadline, by a given error, and beside a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from rbee_serve.errors import InferenceTimeout, InternalError, WorkerLost
from rbee_serve.events import Error, Event, Progress
from rbee_serve.replica.request_timer import RequestTimer

STEP = Progress(step=1, total=2)
LOST = WorkerLost("the worker is being replaced")


async def steps(count: int, on_cancel: Exception | Event[Any] | None = None) -> AsyncGenerator[Event[Any], None]:
    """`count` events, then a wait; its cancellation is swallowed and raises or yields `on_cancel`, if given."""
    for _ in range(count):
        yield STEP
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        if on_cancel is None:
            raise
        if isinstance(on_cancel, Exception):
            raise on_cancel from None
        yield on_cancel


async def read(timer: RequestTimer, source: AsyncGenerator[Event[Any], None]) -> list[Event[Any]]:
    return [event async for event in timer.limit(source)]


async def test_a_deadline_before_the_first_event_is_raised() -> None:
    with pytest.raises(InferenceTimeout, match=r"within 0\.01 s"):
        await read(RequestTimer(0.01), steps(0))


@pytest.mark.parametrize("on_cancel", [None, STEP, InternalError("the backend failed while it was cancelled")])
async def test_a_given_error_is_the_last_event_whatever_the_backend_does(on_cancel: Any) -> None:
    timer = RequestTimer(60)
    reading = asyncio.create_task(read(timer, steps(1, on_cancel)))
    await asyncio.sleep(0.01)
    timer.end(LOST)
    timer.end(InternalError("a second error"))
    assert await reading == [STEP, Error.from_exception(LOST)]
    assert reading.cancelling() == 0


@pytest.mark.parametrize("cancel_first", [False, True])
@pytest.mark.parametrize("on_cancel", [None, STEP])
async def test_a_cancellation_at_the_same_moment_stays_a_cancellation(cancel_first: bool, on_cancel: Any) -> None:
    timer = RequestTimer(60)
    reading = asyncio.create_task(read(timer, steps(1, on_cancel)))
    await asyncio.sleep(0.01)
    if cancel_first:
        reading.cancel()
    timer.end(LOST)
    if not cancel_first:
        reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_an_end_between_two_reads_does_not_interrupt_the_reader() -> None:
    timer = RequestTimer(60)
    stream = timer.limit(steps(2))
    assert await anext(stream) == STEP
    timer.end(LOST)
    await asyncio.sleep(0)
    assert [event async for event in stream] == [Error.from_exception(LOST)]


async def test_an_outer_timeout_stays_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await read(RequestTimer(60), steps(1))


async def test_an_error_of_the_source_is_raised_unchanged() -> None:
    async def failing() -> AsyncGenerator[Event[Any], None]:
        raise InternalError("broken")
        yield STEP

    with pytest.raises(InternalError, match="broken"):
        await read(RequestTimer(60), failing())
