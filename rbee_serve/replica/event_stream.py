"""From a backend's events to what crosses the process border.

`ordered` enforces the grammar and turns exceptions into a final `Error`. `frames` encodes each event, once.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from rbee_serve.errors import InternalError
from rbee_serve.events import End, Error, Event, Started, to_json
from rbee_serve.grammar import GrammarError, StreamGrammar
from rbee_serve.replica.foreign_errors import error_from_backend
from rbee_serve.sse import DONE, frame
from rbee_serve.transport.request_messages import ResponseChunk

logger = logging.getLogger(__name__)


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
                raise error_from_backend(exc) from exc
            yield Error.from_exception(error_from_backend(exc))
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
            last = Error.from_exception(error_from_backend(exc))
    yield last


async def frames(events: AsyncGenerator[Event[Any], None]) -> AsyncGenerator[ResponseChunk, None]:
    """A fragment for each event; the last one is terminal and holds the marker too. It comes when `events` is closed,
    so whoever sees it finds the place free that the request had.

    Raises what `events` raises before its first event.
    """
    data = b""
    async with aclosing(events):
        async for event in events:
            try:
                data = frame(to_json(event))
            except Exception:  # an event that cannot be encoded: the stream must still come to an end
                logger.exception("an event could not be sent")
                event = Error.from_exception(InternalError("the worker's answer could not be sent"))
                data = frame(to_json(event))
            if isinstance(event, End | Error):
                break
            yield data, False
    yield data + DONE, True
