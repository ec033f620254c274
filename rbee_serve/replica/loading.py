"""From a configuration to a backend that has served one request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from rbee_serve.errors import ConfigurationError, WorkerError
from rbee_serve.events import Started
from rbee_serve.replica.backend_process import BackendProcess
from rbee_serve.replica.event_stream import ordered
from rbee_serve.result import collect
from rbee_serve.state import LoadProgress, Snapshot
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.model_code import without_stop_iteration
from rbee_serve.worker.registry import extras_for, missing_module
from rbee_serve.worker.spec import LoadContext, WorkerSpec

logger = logging.getLogger(__name__)

RETRY_PAUSE_S = 5.0
"""How long a replacement that could not be loaded stays, because Ray Serve starts the next one at once."""
SNAPSHOT_TIMEOUT_S = 3.0


async def load(spec_path: str, spec: WorkerSpec[Any], context: LoadContext) -> InferenceBackend[Any, Any]:
    """Load the model in a thread or a process of its own, then serve the warm-up request.

    Raises `ConfigurationError` or a `WorkerError` with a message for the operator, or the exception of the engine.
    """
    worker = context.worker
    if missing := missing_module(spec):
        extra = spec.extra and extras_for(context.device.accelerator, spec.extra)
        remedy = f"pip install 'rbee-serve[{extra}]'" if extra else f"install {missing}"
        raise ConfigurationError(f"worker {worker.id}: the module {missing} is not installed; {remedy}")
    started_at = time.monotonic()
    try:
        async with asyncio.timeout(worker.load_timeout_s):
            backend: InferenceBackend[Any, Any]
            if spec.own_process:
                backend = await BackendProcess.start(spec_path, context)
            else:
                backend = await asyncio.to_thread(without_stop_iteration(spec.load), context)
            loaded_at = time.monotonic()
            context.report(LoadProgress(stage="warming_up"))
            await warm_up(spec, backend)
    except TimeoutError as exc:
        raise ConfigurationError(
            f"worker {worker.id}: the model was not loaded within {worker.load_timeout_s:.0f} s; raise load_timeout_s"
        ) from exc
    logger.info(
        "worker %s: loaded in %.1f s, warmed up in %.1f s",
        worker.id, loaded_at - started_at, time.monotonic() - loaded_at,
    )  # fmt: skip
    return backend


async def warm_up(spec: WorkerSpec[Any], backend: InferenceBackend[Any, Any]) -> None:
    """Serve the warm-up request of the worker type. Raises the error that it ends with."""
    events = ordered(Started.now("warm-up", spec.name), backend.execute(spec.warm_up()))
    await collect(events, spec.outputs)


async def pause_before_retry(watch: Callable[[int, float], Awaitable[Snapshot]], worker_id: str) -> None:
    """Wait `RETRY_PAUSE_S` if Ray Serve is going to try again, as it does for a worker that has served. `watch` is
    `StateClient.watch`."""
    with suppress(Exception):  # without the hub nobody knows, and the failure itself is to be raised
        async with asyncio.timeout(SNAPSHOT_TIMEOUT_S):
            worker = (await watch(-1, 0.0)).worker(worker_id)
        if worker is not None and worker.was_ready:
            await asyncio.sleep(RETRY_PAUSE_S)


def reason(error: Exception, worker_id: str, *, loaded: bool = False) -> tuple[str, str]:
    """`(code, message)` of a failed load, or of a backend that has failed after it was `loaded`.

    They are shown in `/v1/ready`, to the orchestrator and in the supervisor's terminal.
    """
    if isinstance(error, WorkerError):
        return error.code, error.message
    if isinstance(error, ConfigurationError):
        return "WORKER_UNHEALTHY", str(error)
    what = "its backend has failed" if loaded else "the model could not be loaded"
    return "WORKER_UNHEALTHY", f"worker {worker_id}: {what} ({type(error).__name__}); see the worker's log"
