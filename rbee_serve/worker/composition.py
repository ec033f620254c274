"""A stream of text merged with the streams that are derived from the text while it is generated.

    tokens ─┬──────────────────────────────────────→ events, in the order of their arrival; the `end` of the text last
            └─→ derived output: text ──→ helper worker ──→ events ─┘

A derived output reads the text and yields events of its own. The text never waits for it: where its worker is slower,
it lags behind. The first failure ends the merged stream, and closing it closes all the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from rbee_serve.events import End, Event, Output
from rbee_serve.outputs import TokenOutput

DerivedOutput = Callable[[AsyncIterator[str]], AsyncGenerator[Event[Any], None]]

MAX_BACKLOG = 256
"""Events that may wait for the reader; then every source waits."""


async def composed(
    text: AsyncGenerator[Event[TokenOutput], None], derived: Sequence[DerivedOutput]
) -> AsyncGenerator[Event[Any], None]:
    """The events of `text` and of its derived outputs. Raises what any of them raises."""
    merged: asyncio.Queue[Event[Any] | None] = asyncio.Queue(MAX_BACKLOG)
    feeds = [asyncio.Queue[str | None]() for _ in derived]
    ends: list[Event[Any]] = []

    async def read_text() -> None:
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

    async def read_derived(output: DerivedOutput, feed: asyncio.Queue[str | None]) -> None:
        async with aclosing(output(_pieces(feed))) as events:
            async for event in events:
                await merged.put(event)

    tasks: list[asyncio.Task[None]] = []
    try:
        # The first event is awaited here: an error of `text` before it is a refusal, and then nothing else is started.
        yield await anext(text)
        tasks.append(asyncio.create_task(read_text()))
        tasks += [asyncio.create_task(read_derived(*pair)) for pair in zip(derived, feeds, strict=True)]
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
    """Wait for all tasks, or for the first failure, and put None into the queue. Raises the failure."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    await merged.put(None)
    for task in done:
        task.result()


async def _pieces(feed: asyncio.Queue[str | None]) -> AsyncIterator[str]:
    while (piece := await feed.get()) is not None:
        yield piece
