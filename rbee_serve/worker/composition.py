"""A text and what is made of it while it is being written, as one stream of events.

    tokens ─┬────────────────────────────────────→ events, in the order in which they come; the text's `end` last
            └─→ companion: text ──→ another worker ──→ events ─┘

A companion reads the text and yields events of its own. It is never waited for by the text: where its worker is slower,
it lags behind. The first failure ends everything, and so does closing the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from rbee_serve.events import End, Event, Output
from rbee_serve.outputs import TokenOutput

DerivedOutput = Callable[[AsyncIterator[str]], AsyncGenerator[Event[Any], None]]

BACKLOG = 256
"""Events that may wait for the reader before everybody waits for it."""


async def composed(
    text: AsyncGenerator[Event[TokenOutput], None], companions: Sequence[DerivedOutput]
) -> AsyncGenerator[Event[Any], None]:
    """The events of `text` and of its companions. Raises what any of them raises."""
    merged: asyncio.Queue[Event[Any] | None] = asyncio.Queue(BACKLOG)
    feeds = [asyncio.Queue[str | None]() for _ in companions]
    ends: list[Event[Any]] = []

    async def write() -> None:
        try:
            async with aclosing(text) as events:
                async for event in events:
                    if isinstance(event, End):
                        ends.append(event)
                        continue
                    if isinstance(event, Output):
                        for feed in feeds:
                            feed.put_nowait(event.value.t)
                    await merged.put(event)
        finally:
            for feed in feeds:
                feed.put_nowait(None)

    async def accompany(companion: DerivedOutput, feed: asyncio.Queue[str | None]) -> None:
        async with aclosing(companion(_pieces(feed))) as events:
            async for event in events:
                await merged.put(event)

    tasks: list[asyncio.Task[None]] = []
    try:
        # The first event is waited for here: what `text` raises before it is a refusal, and nothing else is begun then.
        yield await anext(text)
        tasks.append(asyncio.create_task(write()))
        tasks += [asyncio.create_task(accompany(*pair)) for pair in zip(companions, feeds, strict=True)]
        done = asyncio.create_task(_all_done(list(tasks), merged))
        tasks.append(done)
        while (event := await merged.get()) is not None:
            yield event
        await done
        for end in ends:
            yield end
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await text.aclose()


async def _all_done(tasks: list[asyncio.Task[None]], merged: asyncio.Queue[Event[Any] | None]) -> None:
    """Wait for all, or for the first failure, and say so in the queue. Raises the failure."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    await merged.put(None)
    for task in done:
        task.result()


async def _pieces(feed: asyncio.Queue[str | None]) -> AsyncIterator[str]:
    while (piece := await feed.get()) is not None:
        yield piece
