"""What leaves a replica together, and when."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncGenerator
from typing import Any

from rbee_serve.multiplexing import Fragment, Part
from rbee_serve.replica.channel import Answering, Channels

CHANNEL, CALL, NUMBER = "channel-1", 7, 3


async def messages_of(work: Answering) -> AsyncGenerator[list[Part], None]:
    """The messages of a call with one request, after the acknowledgement."""
    responding = Channels(work).respond(CHANNEL, CALL, [(NUMBER, pickle.dumps({}), "corr")])
    assert await anext(responding) == CALL
    async for message in responding:
        assert isinstance(message, list)
        yield message


def sizes(message: list[Part]) -> int:
    [(number, data, *_)] = message
    assert number == NUMBER
    return len(data)


async def test_the_first_event_leaves_at_once_and_what_is_queued_leaves_together() -> None:
    go = asyncio.Event()

    async def work(fields: dict[str, Any]) -> AsyncGenerator[Fragment, None]:
        yield b"a", False
        await go.wait()
        for _ in range(100):
            yield b"b", False
        yield b"c", True

    messages = messages_of(work)
    assert await anext(messages) == [(NUMBER, b"a", False)]
    go.set()
    await asyncio.sleep(0.05)
    assert await anext(messages) == [(NUMBER, 100 * b"b" + b"c", True)]
    assert await anext(messages, None) is None


async def test_a_stream_that_is_behind_gathers_more_and_one_that_is_not_holds_nothing_back() -> None:
    released = asyncio.Event()

    async def work(fields: dict[str, Any]) -> AsyncGenerator[Fragment, None]:
        for i in range(521):
            if i == 500:
                await released.wait()
            yield b"x", False
            await asyncio.sleep(0 if i < 500 else 0.001)
        yield b"x", True

    counts: list[int] = []
    async for message in messages_of(work):
        counts.append(sizes(message))
        if sum(counts) == 500:  # all that the work has given so far
            released.set()
        for _ in range(3 if sum(counts) < 400 else 0):
            await asyncio.sleep(0)
    assert counts[0] == 1
    assert max(counts[:20]) > 3 * counts[1]
    assert counts[-10:-1] == [1] * 9


async def test_a_call_that_is_closed_stops_its_work() -> None:
    stopped = asyncio.Event()

    async def work(fields: dict[str, Any]) -> AsyncGenerator[Fragment, None]:
        try:
            yield b"a", False
            await asyncio.Event().wait()
        finally:
            stopped.set()

    channels = Channels(work)
    responding = channels.respond(CHANNEL, CALL, [(NUMBER, pickle.dumps({}), "corr")])
    await anext(responding)
    await anext(responding)
    await responding.aclose()
    async with asyncio.timeout(5):
        await stopped.wait()
    assert not channels._channels
