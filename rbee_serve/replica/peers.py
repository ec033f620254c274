"""Calls from one worker to another, by Ray Serve's handles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from ray.serve.handle import DeploymentHandle

from rbee_serve import correlation
from rbee_serve.errors import WorkerLost
from rbee_serve.events import End, Error, Event
from rbee_serve.ray_boundary import UNANSWERED_CALL_S, abandon, error_from_ray
from rbee_serve.worker.spec import Peer


def peer(worker_id: str, handle: DeploymentHandle[Any]) -> Peer:
    """The worker behind `handle`, for others to call.

    It tells within milliseconds that it has taken note of a request, also where that has to wait; so one that is silent
    at first for longer than `UNANSWERED_CALL_S` is lost.
    """
    handle = handle.options(stream=True, method_name="stream_events")

    async def events(fields: dict[str, Any]) -> AsyncGenerator[Event[Any], None]:
        messages = aiter(handle.remote(fields, correlation.current()))
        first = asyncio.ensure_future(anext(messages))
        complete = False
        try:
            done, _ = await asyncio.wait([first], timeout=UNANSWERED_CALL_S)
            if not done:
                raise WorkerLost(f"worker {worker_id} does not answer; try again in a moment")
            event: Event[Any] = first.result()
            while not isinstance(event, End | Error):
                yield event
                event = await anext(messages)
            complete = True
            yield event
        except Exception as exc:
            raise error_from_ray(exc, worker_id) from exc
        finally:
            if not complete:
                abandon(first, messages)

    return events
