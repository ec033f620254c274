"""From a backend's events to the chunks of a streamed response.

`ordered` enforces the grammar and turns exceptions into a final `Error`. `frames` encodes each event once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, cast

from rbee_serve.errors import InternalError
from rbee_serve.events import End, Error, Event, Started, to_json
from rbee_serve.grammar import GrammarError, StreamGrammar
from rbee_serve.replica.foreign_errors import error_from_backend
from rbee_serve.sse import DONE, frame
from rbee_serve.transport.cancellation import is_own_cancellation
from rbee_serve.transport.request_messages import ResponseChunk

logger = logging.getLogger(__name__)


async def ordered(
    started: Started,
    source: AsyncIterator[Event[Any]],
    *,
    started_sent: bool = False,
    on_failure: Callable[[BaseException], object] = lambda error: None,
) -> AsyncGenerator[Event[Any], None]:
    """`started`, then the events of `source`, then exactly one `End` or `Error`, whatever `source` does.

    `started` is sent with the first event of `source`. An exception before that is a refusal: it is raised here as a
    `WorkerError` and can still become an HTTP status. A wrong order, or an end without `End`, is logged and becomes an
    `Error`. Closing this generator closes `source`.

    With `started_sent` the client already has `started`, so a refusal becomes an `Error` event too. `on_failure` is
    called with the exception that `source` raises, before it is translated.
    """
    grammar = StreamGrammar()
    grammar.accept(started)
    last: Event[Any]
    events = cast("AsyncGenerator[Event[Any], None]", source)
    try:
        try:
            event = await anext(events, None)
        except (Exception, asyncio.CancelledError) as exc:
            if is_own_cancellation(exc):
                raise
            on_failure(exc)
            if not started_sent:
                raise error_from_backend(exc) from exc
            yield Error.from_exception(error_from_backend(exc))
            return
        if not started_sent:
            yield started
        try:
            while event is not None:
                grammar.accept(event)
                if isinstance(event, End | Error):
                    break
                yield event
                event = await anext(events, None)
            if event is None:
                logger.error("the backend ended its stream without an End event")
            last = event or Error.from_exception(InternalError("the worker stopped in the middle of the response"))
        except GrammarError as exc:
            logger.error("the backend sent events in a wrong order: %s", exc)
            last = Error.from_exception(InternalError("the worker sent events in a wrong order"))
        except (Exception, asyncio.CancelledError) as exc:
            if is_own_cancellation(exc):
                raise
            on_failure(exc)
            last = Error.from_exception(error_from_backend(exc))
    finally:
        await _close(events)
    yield last


async def _close(events: AsyncGenerator[Event[Any], None]) -> None:
    """Close the backend's stream. If that fails, the response keeps the end that it has."""
    try:
        await events.aclose()
    except (Exception, asyncio.CancelledError) as exc:
        if is_own_cancellation(exc):
            raise
        logger.error("the backend failed when its stream was closed: %s", type(exc).__name__, exc_info=exc)


async def frames(events: AsyncGenerator[Event[Any], None]) -> AsyncGenerator[ResponseChunk, None]:
    """One chunk for each event. The last one is terminal and includes the `[DONE]` marker; it is sent after `events` is
    closed, so the request's slot is free when the client sees the end.

    Raises the exception of `events` if there is one before its first event.
    """
    data = b""
    async with aclosing(events):
        async for event in events:
            try:
                data = frame(to_json(event))
            except Exception:  # an event that cannot be encoded must still end the stream
                logger.exception("an event could not be encoded")
                event = Error.from_exception(InternalError("the worker's response could not be encoded"))
                data = frame(to_json(event))
            if isinstance(event, End | Error):
                break
            yield data, False
    yield data + DONE, True
