"""From a configuration to a backend that has served one request.

download, imports  →  wait_for_gpu  →  weights, engine, warm-up  →  ready
                      ╰─────── no other load on its GPUs ───────╯
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from rbee_serve.errors import ConfigurationError, InsufficientVram, WorkerError
from rbee_serve.events import Started
from rbee_serve.replica.backend_process import BackendProcess
from rbee_serve.replica.event_stream import ordered
from rbee_serve.replica.foreign_errors import error_from_load
from rbee_serve.replica.gpu_lock import gpu_locks
from rbee_serve.replica.load_turn import LoadTurn
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
MEMORY_PAUSE_S = 5.0
"""The pause before a model is loaded once more because GPU memory was short: that of a process which has just ended is
free some seconds later."""


async def load(spec_path: str, spec: WorkerSpec[Any], context: LoadContext) -> InferenceBackend[Any, Any]:
    """Load the model in a thread or a process of its own, then serve the warm-up request. No other model is loaded onto
    the same GPU meanwhile; the wait for that does not count against `load_timeout_s`.

    Where GPU memory was short although others have been loading onto the same GPU, the model is loaded once more, after
    all who wait. Raises `ConfigurationError` or a `WorkerError` with a message for the operator, or the exception of
    the engine.
    """
    worker = context.worker
    if missing := missing_module(spec):
        extra = spec.extra and extras_for(context.device.accelerator, spec.extra)
        remedy = f"pip install 'rbee-serve[{extra}]'" if extra else f"install {missing}"
        raise ConfigurationError(f"worker {worker.id}: the module {missing} is not installed; {remedy}")
    try:
        async with asyncio.timeout(worker.load_timeout_s) as timeout:
            turn = await _turn(context, worker.gpus, timeout)
            try:
                return await _load_in_turn(spec_path, spec, context, turn)
            except InsufficientVram as exc:
                if not turn.others_loaded:
                    raise
                logger.warning("%s; others were loading, so it is tried once more", exc.message)
            gc.collect()  # the exception has kept the model until here
            turn.end()
            await asyncio.sleep(MEMORY_PAUSE_S)
            return await _load_in_turn(spec_path, spec, context, await _turn(context, 0.0, timeout))
    except TimeoutError as exc:
        raise ConfigurationError(
            f"worker {worker.id}: the model was not loaded within {worker.load_timeout_s:.0f} s; raise load_timeout_s"
        ) from exc


async def _turn(context: LoadContext, share: float, limit: asyncio.Timeout) -> LoadTurn:
    locks = await asyncio.to_thread(gpu_locks, context.device, context.worker.id, share)
    return LoadTurn(locks, context.report, limit)


async def _load_in_turn(
    spec_path: str, spec: WorkerSpec[Any], context: LoadContext, turn: LoadTurn
) -> InferenceBackend[Any, Any]:
    context = replace(context, wait_for_gpu=turn.wait_in_thread)
    started_at = time.monotonic()
    backend: InferenceBackend[Any, Any] | None = None
    try:
        if not spec.waits_for_gpu:
            await turn.wait()
        if spec.own_process:
            backend = await BackendProcess.start(spec_path, context)
        else:
            backend = await load_in_thread(spec, context)
        loaded_at = time.monotonic()
        await turn.wait()
        context.report(LoadProgress(stage="warming_up"))
        await warm_up(spec, backend)
        await asyncio.to_thread(backend.memory_bytes)  # a gauge waits for a value there, and the first state has it
    except BaseException as exc:
        turn.cancel()
        if backend is not None and (spec.own_process or isinstance(exc, InsufficientVram)):
            await asyncio.to_thread(backend.close)
        if spec.own_process:  # which has ended, and its memory with it
            turn.end()
        raise
    turn.end()
    logger.info(
        "worker %s: loaded in %.1f s, warmed up in %.1f s",
        context.worker.id, loaded_at - started_at, time.monotonic() - loaded_at,
    )  # fmt: skip
    return backend


async def load_in_thread(spec: WorkerSpec[Any], context: LoadContext) -> InferenceBackend[Any, Any]:
    """The backend that `spec.load` returns. Raises its exception, as a `WorkerError` where memory or the accelerator is
    the reason."""
    try:
        return await asyncio.to_thread(without_stop_iteration(spec.load), context)
    except Exception as exc:
        if known := error_from_load(exc):
            raise known from exc
        raise


async def warm_up(spec: WorkerSpec[Any], backend: InferenceBackend[Any, Any]) -> None:
    """Serve the warm-up request of the worker type. Raises the error that it ends with."""
    failures: list[BaseException] = []
    events = ordered(Started.now("warm-up", spec.name), backend.execute(spec.warm_up()), on_failure=failures.append)
    try:
        await collect(events, spec.outputs)
    except WorkerError:
        for failure in failures:
            if known := error_from_load(failure):
                raise known from failure
        raise


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
    known = error_from_load(error)
    if known is not None and not loaded:
        return known.code, known.message
    what = "its backend has failed" if loaded else "the model could not be loaded"
    code = known.code if known else "WORKER_UNHEALTHY"
    return code, f"worker {worker_id}: {what} ({type(error).__name__}); see the worker's log"
