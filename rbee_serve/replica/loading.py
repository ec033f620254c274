"""From a configuration to a backend that has answered once."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any

from rbee_serve.errors import ConfigurationError, WorkerError
from rbee_serve.events import Started
from rbee_serve.replica.backend_process import BackendProcess
from rbee_serve.replica.event_stream import ordered
from rbee_serve.result import collect
from rbee_serve.state import LoadProgress
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.registry import missing_module
from rbee_serve.worker.spec import LoadContext, WorkerSpec

logger = logging.getLogger(__name__)


async def load(spec_path: str, spec: WorkerSpec[Any], context: LoadContext) -> InferenceBackend[Any, Any]:
    """Load the model in a thread or a process, then let it work on one real request.

    Raises `ConfigurationError` or a `WorkerError` with a sentence for the operator, or whatever the engine raises.
    """
    worker = context.worker
    if missing := missing_module(spec):
        remedy = f"pip install 'rbee-serve[{spec.extra}]'" if spec.extra else f"install {missing}"
        raise ConfigurationError(f"worker {worker.id}: the module {missing} is not installed; {remedy}")
    make = partial(BackendProcess, spec_path) if spec.own_process else spec.load
    began = time.monotonic()
    try:
        async with asyncio.timeout(worker.load_timeout_s):
            backend = await asyncio.to_thread(make, context)
            loaded = time.monotonic()
            context.report(LoadProgress(stage="warming_up"))
            await warm_up(spec, backend)
    except TimeoutError as exc:
        raise ConfigurationError(
            f"worker {worker.id}: the model was not loaded in {worker.load_timeout_s:.0f} s (load_timeout_s)"
        ) from exc
    logger.info(
        "worker %s: loaded in %.1f s, warmed up in %.1f s",
        worker.id, loaded - began, time.monotonic() - loaded,
    )  # fmt: skip
    return backend


async def warm_up(spec: WorkerSpec[Any], backend: InferenceBackend[Any, Any]) -> None:
    """One real inference. Raises the error that it ended with."""
    events = ordered(Started.now("warm-up", spec.name), backend.execute(spec.warm_up()))
    await collect(events, spec.outputs)


def reason(error: Exception, worker_id: str) -> tuple[str, str]:
    """`(code, sentence)` of a load that failed, for `/v1/ready`, the orchestrator and the supervisor's screen."""
    if isinstance(error, WorkerError):
        return error.code, error.message
    if isinstance(error, ConfigurationError):
        return "WORKER_UNHEALTHY", str(error)
    kind = type(error).__name__
    return "WORKER_UNHEALTHY", f"worker {worker_id}: the model could not be loaded ({kind}); the worker's log says why"
