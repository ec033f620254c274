"""Calls to a replica, by whoever makes them: how they are cancelled, what it means when they break, and the way there
that does not lead through Ray."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from rbee_serve.errors import InsufficientResources, InternalError, WorkerError, WorkerLost, WorkerUnhealthy

logger = logging.getLogger(__name__)

SLOW_ACKNOWLEDGEMENT_S = 30.0
"""How long a replica that shows life may take to note a request: Ray needs several milliseconds for each one of the
hundreds that may have come before it."""


def abandon(acknowledgement: asyncio.Future[Any], messages: Any) -> None:
    """Cancel a call. Serve loses a cancellation that comes while it hands the call to a replica, which then works for
    nobody; so the acknowledgement is waited for."""
    if acknowledgement.done():
        cancel(messages)
        return
    giving_up = asyncio.get_running_loop().call_later(SLOW_ACKNOWLEDGEMENT_S, cancel, messages)

    def on_acknowledgement(acknowledgement: asyncio.Future[Any]) -> None:
        giving_up.cancel()
        if acknowledgement.cancelled() or acknowledgement.exception() is None:
            cancel(messages)

    acknowledgement.add_done_callback(on_acknowledgement)


def cancel(messages: Any) -> None:
    """Cancel a call that has been acknowledged."""
    with suppress(Exception):
        messages.cancel()


def host_for(node_id: str) -> str:
    """This machine's address for those on that node of Ray's: nobody else reaches what listens on the loopback."""
    near = node_id == ray.get_runtime_context().get_node_id()
    return "127.0.0.1" if near else str(ray.util.get_node_ip_address())


def error_from_ray(error: BaseException, worker_id: str) -> WorkerError:
    """What went wrong at the border, as an error for the client; the details go to the log."""
    if isinstance(error, WorkerError):
        return error
    logger.warning("the call to worker %s broke: %s: %s", worker_id, type(error).__name__, str(error)[:500])
    match error:
        case DeploymentUnavailableError():
            return WorkerUnhealthy(f"worker {worker_id} could not be started; GET /v1/ready says why")
        case BackPressureError():
            return InsufficientResources(f"worker {worker_id} has no room now; try again later")
        case RayError() | RayServeException() | StopAsyncIteration() | OSError():
            return WorkerLost(f"worker {worker_id} died with the request on it; try again in a moment")
        case _:
            return InternalError("the server failed on this request; its log has the details")
