"""A loaded model behind admission, deadlines and ordered events: the parts of a replica that do not need Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any
from weakref import WeakSet

from rbee_serve.config import WorkerConfig
from rbee_serve.errors import WorkerLost
from rbee_serve.events import Event, Progress, Started
from rbee_serve.replica.admission import Admission
from rbee_serve.replica.event_stream import ordered
from rbee_serve.replica.request_timer import RequestTimer
from rbee_serve.request import InferenceRequest, new_id
from rbee_serve.result import EncodedResult, Result
from rbee_serve.validation.limits import with_limits
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.engine_failure import EngineFailure, engine_failure
from rbee_serve.worker.model_code import without_stop_iteration
from rbee_serve.worker.spec import WorkerSpec
from rbee_serve.worker.watchdog import Watchdog

logger = logging.getLogger(__name__)

POSITION_PERIOD_S = 1.0
"""How often a queued request gets its position as an event, if that has changed."""


class WorkerService:
    """Turns requests into events."""

    def __init__(
        self,
        worker: WorkerConfig,
        spec: WorkerSpec[Any],
        backend: InferenceBackend[Any, Any],
        watchdog: Watchdog,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec = spec
        self.backend = backend
        self.watchdog = watchdog
        self.request_type: type[InferenceRequest] = with_limits(spec.request, worker.limits)
        self.admission = Admission(
            worker.max_ongoing_requests or spec.default_max_ongoing_requests, worker.max_queued_requests, on_change
        )
        self._worker = worker
        self._on_change = on_change
        self._device_lost = False
        self._timers: WeakSet[RequestTimer] = WeakSet()  # a timer lives as long as its stream

    def events(self, request: InferenceRequest) -> AsyncGenerator[Event[Any], None]:
        """All events of a request: `started`, queue positions, the backend's events, and the end.

        A failure before the first event is raised: `InsufficientResources`, `InferenceTimeout`, or the backend's own
        refusal. Closing the generator cancels the request.
        """
        timeout_s = min(request.timeout_s or self._worker.timeout_s, self._worker.timeout_s)
        timer = RequestTimer(timeout_s)
        self._timers.add(timer)
        return timer.limit(self._admitted(request))

    async def encode_result(self, request: InferenceRequest, result: Result) -> EncodedResult:
        """The body of a response that is not a stream: the worker type's own format if the request selects one, else
        JSON."""
        if self.spec.encode_result is not None:
            encoded = await asyncio.to_thread(without_stop_iteration(self.spec.encode_result), request, result)
            if encoded is not None:
                return encoded
        return EncodedResult(result.to_json())

    def is_healthy(self) -> bool:
        """Whether the backend is alive, can use its accelerator, and makes progress while it has work."""
        return self.fault() is None

    def fault(self) -> str | None:
        """Why only a new process can help: a clause for operators. None while the worker is healthy."""
        if self._device_lost:
            return "its accelerator has failed, and its process cannot use it any more"
        if not self.backend.is_healthy():
            return self.backend.why_unhealthy() or "its engine is dead"
        if self.watchdog.is_stalled():
            return f"its engine has made no step for {self.watchdog.timeout_s:g} s"
        return None

    def give_up(self) -> None:
        """End every running and queued request with `WorkerLost`, because the worker is being replaced."""
        for timer in list(self._timers):
            timer.end(WorkerLost("the worker cannot go on and is being replaced; try again later"))

    def _on_failure(self, error: BaseException) -> None:
        """Called with what the backend raised for a request, which no later request repairs."""
        if not self._device_lost and engine_failure(error) is EngineFailure.DEVICE_LOST:
            logger.error("worker %s: its process cannot use the accelerator any more", self._worker.id)
            self._device_lost = True
            self._on_change()

    async def _admitted(self, request: InferenceRequest) -> AsyncGenerator[Event[Any], None]:
        request.job_id = request.job_id or new_id("job")
        started = Started.now(request.job_id, self._worker.served_name)
        with self.admission.enter() as slot:
            reported = 0
            while not slot.admitted:
                if reported == 0:
                    yield started
                if slot.position not in (0, reported):
                    reported = slot.position
                    yield Progress(step=reported, total=self.admission.queued, kind="queued")
                await slot.wait(POSITION_PERIOD_S)
            events = ordered(
                started, self.backend.execute(request), started_sent=reported > 0, on_failure=self._on_failure
            )
            async with aclosing(events):
                async for event in events:
                    yield event
