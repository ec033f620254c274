"""`check_worker_type`: loads a worker type in this process and checks what the library and its clients rely on.

declarations ─→ load ─→ a stream ─→ results ─→ bad requests ─→ a disconnect ─→ one more request ─→ close
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import msgspec

from rbee_serve.config import WorkerConfig
from rbee_serve.errors import ConfigurationError
from rbee_serve.events import End, Error, Event, Metrics, Output, Started, to_json
from rbee_serve.grammar import GrammarError, StreamGrammar, check_stream
from rbee_serve.replica.service import WorkerService
from rbee_serve.request import InferenceRequest
from rbee_serve.result import JSON, Result, collect
from rbee_serve.sse import DONE, frame
from rbee_serve.state import LoadProgress
from rbee_serve.testing.cancellation import check_cancellation
from rbee_serve.testing.declarations import check_declarations, check_refusals
from rbee_serve.testing.failure import ContractError, fail
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.device import choose_device
from rbee_serve.worker.registry import missing_module
from rbee_serve.worker.spec import Device, LoadContext, Peer, WorkerSpec
from rbee_serve.worker.watchdog import Watchdog

_METHODS = ("execute", "is_healthy", "why_unhealthy", "is_ready", "memory_bytes", "engine_requests", "close")
_RESULT_FIELDS = frozenset({"job_id", "model", "started_at", "notes", "metrics", *End.__struct_fields__})


def check_worker_type(
    spec: WorkerSpec[Any],
    worker: WorkerConfig | None = None,
    *,
    device: Device | None = None,
    peers: Mapping[str, Peer] | None = None,
    cancel_after_s: float = 0.5,
    idle_within_s: float = 5.0,
) -> None:
    """Check that a worker type keeps its contract; raises `ContractError` with the first rule that it breaks.

    It loads the model once and runs about five requests, so it takes a second beside the load. `worker` holds the
    `model_ref` and the `engine` options of a real model, and may be left out where the type needs none. `device` is by
    default what `worker` configures, without a GPU; `peers` are the helper workers of a type with `roles`.

    The long request is cancelled `cancel_after_s` seconds after its start: give more where a model's first output takes
    longer. The engine must be idle `idle_within_s` seconds after that: allow for its slowest single step. Errors of the
    configuration and of the load are raised as they are.
    """
    check_declarations(spec)
    worker = worker or WorkerConfig(id="checked", type=spec.name, task=spec.task)
    if spec.needs_model and worker.model_ref is None:
        raise ConfigurationError(f"worker type {spec.full_name}: needs a model; give a WorkerConfig with its model_ref")
    if missing := missing_module(spec):
        raise ConfigurationError(f"worker type {spec.full_name}: the module {missing} is not installed")
    if spec.check is not None:
        spec.check(worker)
    chosen = device or choose_device(worker, spec, (), None)
    _run(_check(spec, worker, chosen, peers or {}, cancel_after_s, idle_within_s))


def _run(check: Coroutine[Any, Any, None]) -> None:
    """Run the check in an event loop of its own: in another thread where this one has a running loop, as a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(check)
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, check).result()


async def _check(
    spec: WorkerSpec[Any],
    worker: WorkerConfig,
    device: Device,
    peers: Mapping[str, Peer],
    cancel_after_s: float,
    idle_within_s: float,
) -> None:
    reports: list[LoadProgress] = []
    watchdog = Watchdog(worker.hang_timeout_on(device.accelerator))
    backend = await asyncio.to_thread(spec.load, LoadContext(worker, device, reports.append, watchdog, peers))
    try:
        await _check_loaded(spec, backend, reports, device)
        service = WorkerService(worker, spec, backend, watchdog)
        began = time.monotonic()
        await _check_stream(spec, backend, device)
        warm_up_s = time.monotonic() - began
        for error in await asyncio.gather(_check_result(service), _check_result(service), return_exceptions=True):
            if error is not None:
                raise error
        check_refusals(spec, service.request_type)
        await check_cancellation(service, cancel_after_s, idle_within_s)
        await _check_further_request(service, idle_within_s + 5 * warm_up_s)
    finally:
        if hasattr(backend, "close"):
            await asyncio.to_thread(backend.close)


async def _check_loaded(spec: WorkerSpec[Any], backend: object, reports: list[LoadProgress], device: Device) -> None:
    for method in _METHODS:
        if not callable(getattr(backend, method, None)):
            fail(spec, f"load returned a {type(backend).__name__} without {method}(); make it an InferenceBackend")
    for progress in reports:
        try:
            msgspec.convert(msgspec.to_builtins(progress), LoadProgress)
        except (msgspec.ValidationError, TypeError) as exc:
            fail(spec, f"load reported {progress}, which cannot be sent: {exc}", exc)
    assert hasattr(backend, "memory_bytes")
    held = await asyncio.to_thread(backend.memory_bytes)  # a gauge waits for its first value there
    if type(held) is not int or held < (device.accelerator != "cuda"):  # a container may hide a GPU's processes
        fail(spec, f"memory_bytes() returned {held!r}; it must be the bytes that the model holds, an int above 0")


async def _check_stream(spec: WorkerSpec[Any], backend: InferenceBackend[Any, Any], device: Device) -> None:
    """The warm-up request as a stream, directly from the backend: in the library's hands a broken order of events
    would end in an error event."""
    started = Started.now("warm-up", spec.name)
    grammar, body, events = StreamGrammar(), bytearray(frame(to_json(started))), list[Event[Any]]()
    grammar.accept(started)
    iterator = backend.execute(spec.warm_up())
    if not isinstance(iterator, AsyncGenerator):
        if isinstance(iterator, Coroutine):
            iterator.close()
        fail(spec, "execute must be an async generator (async def with yield), so that a disconnect can close it")
    async with aclosing(iterator):
        try:
            async for event in iterator:
                grammar.accept(event)
                body += frame(_encoded(spec, event))
                events.append(event)
        except GrammarError as exc:
            fail(spec, f"execute broke the order of events: {exc}", exc)
        except ContractError:
            raise
        except Exception as exc:
            fail(spec, f"execute raised {type(exc).__name__} on the warm-up request: {exc}", exc)
    if not grammar.terminated:
        fail(spec, "execute ended without an End event; yield one last, for example with RequestClock.complete")
    if isinstance(events[-1], Error):
        fail(spec, f"execute yielded an Error event ({events[-1].message}); raise a WorkerError instead")
    try:
        check_stream(bytes(body + DONE), *spec.outputs)
    except GrammarError as exc:
        fail(spec, f"a client cannot read the stream: {exc}", exc)
    metrics = {name: value for event in events if isinstance(event, Metrics) for name, value in event.values.items()}
    if not metrics.get("vram_bytes") and device.accelerator != "cuda":
        fail(spec, "the stream has no Metrics event with vram_bytes above 0; RequestClock.complete adds it")
    if wrong := next((name for name, value in metrics.items() if not _is_finite_number(value)), None):
        fail(spec, f"the metric {wrong} is {metrics[wrong]!r}; metrics are finite numbers")


def _encoded(spec: WorkerSpec[Any], event: Event[Any]) -> bytes:
    if isinstance(event, Output) and type(event.value) not in spec.outputs:
        fail(spec, f"execute yielded a {type(event.value).__name__}, which is not among the outputs of the spec")
    try:
        data = to_json(event)
    except Exception as exc:
        fail(spec, f"execute yielded an event that cannot be encoded as JSON: {event!r:.200}", exc)
    if isinstance(event, Output) and b'"i":' not in data:
        fail(spec, f"the JSON of a {type(event.value).__name__} has no i; drop omit_defaults, or the default of i")
    return data


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


async def _check_result(service: WorkerService) -> None:
    """The warm-up request with `"stream": false`, as JSON or as the file of the worker type."""
    request = service.spec.warm_up().model_copy(update={"stream": False})
    result = await _collected(service, request)
    if taken := sorted(_RESULT_FIELDS.intersection(result.output)):
        fail(service.spec, f"join returned the field {taken[0]}, which every result has already; choose another name")
    try:
        encoded = await service.encode_result(request, result)
        memoryview(encoded.data)  # raises TypeError unless it holds bytes
        if encoded.media_type == JSON:
            msgspec.json.decode(encoded.data, type=dict)
    except Exception as exc:
        fail(service.spec, f"the result cannot be encoded: {type(exc).__name__}: {exc}", exc)
    if "/" not in encoded.media_type:
        fail(service.spec, f"encode_result returned the media type {encoded.media_type!r}; an example is audio/wav")


async def _check_further_request(service: WorkerService, within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s):
            await _collected(service, service.spec.warm_up())
    except TimeoutError as exc:
        fail(
            service.spec,
            f"a request after a disconnect was not done within {within_s:.1f} s; the cancelled one holds the engine",
            exc,
        )
    if not (service.is_healthy() and service.backend.is_ready()):
        fail(service.spec, "the backend is not healthy and ready after a disconnect")


async def _collected(service: WorkerService, request: InferenceRequest) -> Result:
    try:
        return await collect(service.events(request), service.spec.outputs)
    except Exception as exc:
        fail(service.spec, f"the warm-up request failed: {type(exc).__name__}: {exc}", exc)
