"""Calls to a replica through Ray Serve: cancellation, addresses of nodes, and what their errors mean."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from rbee_serve.errors import InsufficientResources, InternalError, WorkerError, WorkerLost
from rbee_serve.port_range import ANY_PORT, port_range

logger = logging.getLogger(__name__)

UNANSWERED_CALL_S = 30.0
"""A call that no replica has answered after this time is cancelled. Ray takes several milliseconds for each of the
hundreds that may be before it."""


def abandon(first: asyncio.Future[Any], messages: Any) -> None:
    """Cancel a call whose `first` answer may be outstanding. Serve loses a cancellation that comes while it hands the
    call to a replica, which then works for no client; so the cancellation waits for that answer."""
    if first.done():
        cancel(messages)
        return
    giving_up = asyncio.get_running_loop().call_later(UNANSWERED_CALL_S, cancel, messages)

    def on_answer(first: asyncio.Future[Any]) -> None:
        giving_up.cancel()
        if first.cancelled() or first.exception() is None:
            cancel(messages)

    first.add_done_callback(on_answer)


def cancel(messages: Any) -> None:
    """Cancel a call that a replica has answered."""
    with suppress(Exception):
        messages.cancel()


def listen_address(node_id: str) -> tuple[str, range]:
    """Where processes on that Ray node reach this one, and the ports to try: the loopback address on the same node,
    which no other machine reaches, else the address that Ray uses for this node."""
    if node_id == ray.get_runtime_context().get_node_id():
        return "127.0.0.1", ANY_PORT
    return str(ray.util.get_node_ip_address()), port_range(os.environ)


def error_from_ray(error: BaseException, worker_id: str) -> WorkerError:
    """The client's error for a failed call or connection; the details go to the log."""
    if isinstance(error, WorkerError):
        return error
    logger.warning("the call to worker %s failed: %s: %s", worker_id, type(error).__name__, str(error)[:500])
    match error:
        case DeploymentUnavailableError():  # the hub decides whether more is tried; Serve hears later of a replica
            return WorkerLost(f"worker {worker_id} has no replica for this request; try again in a moment")
        case BackPressureError():
            return InsufficientResources(f"worker {worker_id} has no room now; try again later")
        case RayError() | RayServeException() | StopAsyncIteration() | OSError() | asyncio.CancelledError():
            return WorkerLost(f"worker {worker_id} died with the request on it; try again in a moment")
        case _:
            return InternalError("the server failed on this request; its log has the details")
