"""Calls from one worker to another over Ray Serve handles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from ray.serve.handle import DeploymentHandle

from rbee_serve import correlation
from rbee_serve.errors import WorkerLost
from rbee_serve.events import End, Error, Event
from rbee_serve.ray_boundary import UNANSWERED_CALL_S, abandon, error_from_ray
from rbee_serve.transport.cancellation import is_own_cancellation
from rbee_serve.worker.spec import Peer


def peer(worker_id: str, handle: DeploymentHandle[Any]) -> Peer:
    """The worker behind `handle` as a function that other workers call.

    A worker sends its first event within milliseconds, even if the request is queued. No event within
    `UNANSWERED_CALL_S` raises `WorkerLost`.
    """
    handle = handle.options(stream=True, method_name="stream_events")

    async def events(fields: dict[str, Any]) -> AsyncGenerator[Event[Any], None]:
        response = aiter(handle.remote(fields, correlation.current()))
        first = asyncio.ensure_future(anext(response))
        complete = False
        try:
            done, _ = await asyncio.wait([first], timeout=UNANSWERED_CALL_S)
            if not done:
                raise WorkerLost(f"worker {worker_id} does not respond; try again in a moment")
            event: Event[Any] = first.result()
            while not isinstance(event, End | Error):
                yield event
                event = await anext(response)
            complete = True
            yield event
        except (Exception, asyncio.CancelledError) as exc:
            if is_own_cancellation(exc):
                raise
            raise error_from_ray(exc, worker_id) from exc
        finally:
            if not complete:
                abandon(first, response)

    return events
