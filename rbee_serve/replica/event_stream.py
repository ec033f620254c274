"""From a backend's events to what crosses the process border.

`ordered` enforces the grammar and turns exceptions into a final `Error`. `frames` encodes each event once and gathers
what is ready while the border is busy: the first event leaves at once, everything queued behind it leaves together.
There is no tick, so nothing waits for the sake of being gathered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any, cast

from rbee_serve.errors import InternalError, WorkerError
from rbee_serve.events import End, Error, Event, Started, to_json
from rbee_serve.grammar import GrammarError, StreamGrammar
from rbee_serve.replica.foreign_errors import translate
from rbee_serve.sse import DONE, KEEP_ALIVE, frame

logger = logging.getLogger(__name__)

CHUNK_BYTES = 32 * 1024
"""Frames that travel together are cut at this size; from PERFORMANCE measurements, 16 to 32 KB."""

BACKLOG_BYTES = 4 * 1024 * 1024
"""When the reader is this far behind, the backend is no longer read until it has caught up."""

CATCH_UP_S = 0.005
"""The longest that frames are held back to travel with later ones, on a stream that is behind already."""

KEEP_ALIVE_S = 10.0
"""A comment line is sent after this many seconds of silence."""


async def ordered(
    started: Started, work: AsyncIterator[Event[Any]], *, announced: bool = False
) -> AsyncGenerator[Event[Any], None]:
    """`started`, then what `work` yields, then exactly one `End` or `Error`, whatever `work` does.

    `started` goes out with the first event of `work`. What `work` raises before that is a refusal: it is raised here,
    as a `WorkerError`, and can still become an HTTP status. A backend that breaks the order, or ends without an `End`,
    is told off in the log and the client gets an `Error`. Closing this generator closes `work`.

    Where `started` has gone out already (`announced`), a refusal has become an `Error` event too.
    """
    grammar = StreamGrammar()
    grammar.accept(started)
    last: Event[Any]
    async with aclosing(cast("AsyncGenerator[Event[Any], None]", work)) as events:
        try:
            event = await anext(events, None)
        except Exception as exc:
            if not announced:
                raise translate(exc) from exc
            yield Error.from_exception(translate(exc))
            return
        if not announced:
            yield started
        try:
            while event is not None:
                grammar.accept(event)
                if isinstance(event, End | Error):
                    break
                yield event
                event = await anext(events, None)
            if event is None:
                logger.error("the backend came to its end without an End event")
            last = event or Error.from_exception(InternalError("the worker stopped in the middle of the answer"))
        except GrammarError as exc:
            logger.error("the backend broke the order of events: %s", exc)
            last = Error.from_exception(InternalError("the worker answered in a wrong order"))
        except Exception as exc:
            last = Error.from_exception(translate(exc))
    yield last


async def frames(events: AsyncGenerator[Event[Any], None]) -> AsyncGenerator[tuple[bytes, bool], None]:
    """`(SSE frames, terminal)` for each message over the border; terminal with the one that holds the end.

    Raises what `events` raises before its first event.
    """
    outbox = _Outbox()
    outbox.put(await anext(events))
    pump = asyncio.create_task(outbox.fill(events))
    try:
        while True:
            chunk, terminal = await outbox.take()
            yield chunk, terminal
            if terminal:
                return
    finally:
        pump.cancel()
        with suppress(asyncio.CancelledError):
            await pump
        await events.aclose()  # here and not in the pump, which may be cancelled before it has begun


class _Outbox:
    """Frames between the backend, which fills it, and the border, which empties it."""

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self._bytes = 0
        self._complete = False
        self._taken = 0
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()

    async def fill(self, events: AsyncGenerator[Event[Any], None]) -> None:
        """Encode every event; wait where the reader is far behind."""
        try:
            async for event in events:
                self.put(event)
                if self._bytes > BACKLOG_BYTES:
                    self._emptied.clear()
                    await self._emptied.wait()
        except Exception:  # an event that cannot be encoded: the stream must still come to an end
            logger.exception("an event could not be sent")
            failure = InternalError("the worker's answer could not be sent")
            self.put(Error.from_exception(failure))
        finally:
            self._append(DONE)
            self._complete = True

    def put(self, event: Event[Any]) -> None:
        """Encode an event and keep it for the border."""
        self._append(frame(to_json(event)))

    def _append(self, data: bytes) -> None:
        self._frames.append(data)
        self._bytes += len(data)
        self._filled.set()

    async def take(self) -> tuple[bytes, bool]:
        """Everything that is ready, up to `CHUNK_BYTES`; a keep-alive comment after a long silence."""
        if not self._frames:
            self._filled.clear()
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    await self._filled.wait()
            except TimeoutError:
                return KEEP_ALIVE, False
        await self._catch_up()
        count = size = 0
        for data in self._frames:
            if count and size + len(data) > CHUNK_BYTES:
                break
            count, size = count + 1, size + len(data)
        chunk = b"".join(self._frames[:count])
        del self._frames[:count]
        self._bytes -= size
        self._taken = count
        self._emptied.set()
        return chunk, self._complete and not self._frames

    async def _catch_up(self) -> None:
        """Let this stream and those beside it go on for a few turns of the loop, if the last message held several
        frames: the border is slower than the backends then, and its cost is by the message."""
        if self._taken < 2:
            return
        latest = time.monotonic() + CATCH_UP_S
        for _ in range(2 * self._taken):
            if self._complete or self._bytes >= CHUNK_BYTES or time.monotonic() > latest:
                return
            await asyncio.sleep(0)


def refusal(error: WorkerError) -> tuple[bytes, bool]:
    """The one message that a request gets which is not even started: the ingress answers it with an HTTP status."""
    return frame(to_json(Error.from_exception(error))), True
