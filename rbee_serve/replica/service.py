"""A loaded model behind admission, deadlines and ordered events: everything of a replica that does not need Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from rbee_serve.config import WorkerConfig
from rbee_serve.errors import WorkerLost
from rbee_serve.events import Error, Event, Progress, Started
from rbee_serve.replica.admission import Admission
from rbee_serve.replica.event_stream import ordered
from rbee_serve.replica.time_limit import RequestTimer
from rbee_serve.request import InferenceRequest, new_id
from rbee_serve.result import EncodedResult, Result
from rbee_serve.validation.limits import with_limits
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.spec import WorkerSpec
from rbee_serve.worker.watchdog import Watchdog

POSITION_S = 1.0
"""How often a waiting request is told its position, if that has changed."""


class WorkerService:
    """Answers requests with events."""

    def __init__(
        self,
        worker: WorkerConfig,
        spec: WorkerSpec[Any],
        backend: InferenceBackend[Any, Any],
        steps: Watchdog,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec = spec
        self.backend = backend
        self.steps = steps
        self.request_type: type[InferenceRequest] = with_limits(spec.request, worker.limits)
        self.admission = Admission(
            worker.max_ongoing_requests or spec.default_max_ongoing_requests, worker.max_queued_requests, on_change
        )
        self._worker = worker
        self._limits: set[RequestTimer] = set()

    def events(self, request: InferenceRequest) -> AsyncGenerator[Event[Any], None]:
        """Every event of a request: `started`, its position while it waits, then the backend's, and the end.

        What prevents the work is raised before the first event: `InsufficientResources`, `InferenceTimeout`, or the
        backend's own refusal. Closing the generator stops the work.
        """
        timeout_s = min(request.timeout_s or self._worker.timeout_s, self._worker.timeout_s)
        return self._bounded(timeout_s, self._admitted(request))

    async def encode_result(self, request: InferenceRequest, result: Result) -> EncodedResult:
        """What a client gets that wants no stream: the worker type's own form, where the request asks for one, or
        JSON."""
        if self.spec.encode_result is not None:
            made = await asyncio.to_thread(self.spec.encode_result, request, result)
            if made is not None:
                return made
        return EncodedResult(result.to_json())

    def is_healthy(self) -> bool:
        """Whether the backend is alive, and its engine makes steps while it has work."""
        return self.backend.is_healthy() and not self.steps.is_stalled()

    def give_up(self) -> None:
        """The worker is to be replaced: end every request that it still holds."""
        for limit in list(self._limits):
            limit.end_now(WorkerLost("the worker hangs with the request on it and is being replaced; try again later"))

    async def _admitted(self, request: InferenceRequest) -> AsyncGenerator[Event[Any], None]:
        request.job_id = request.job_id or new_id("job")
        started = Started.now(request.job_id, self._worker.served_name)
        with self.admission.enter() as place:
            told = 0
            while not place.admitted:
                if told == 0:
                    yield started
                if place.position not in (0, told):
                    told = place.position
                    yield Progress(step=told, total=self.admission.queued, kind="queued")
                await place.wait(POSITION_S)
            work = ordered(started, self.backend.execute(request), announced=told > 0)
            async with aclosing(work):
                async for event in work:
                    yield event

    async def _bounded(
        self, timeout_s: float, events: AsyncGenerator[Event[Any], None]
    ) -> AsyncGenerator[Event[Any], None]:
        """`events`, until `timeout_s` seconds from now, or until the worker is given up. What is late is stopped; the
        client is told in the way that is left: by an exception before the first event, by an `Error` event after it."""
        limit = RequestTimer(timeout_s)
        self._limits.add(limit)
        begun = False
        try:
            async with aclosing(events):
                while True:
                    # Around each event and not around all: no timeout may be in force while the reader is busy.
                    with limit:
                        event = await anext(events, None)
                    if event is None:
                        return
                    begun = True
                    yield event
        except TimeoutError as exc:
            if not begun:
                raise limit.error from exc
            yield Error.from_exception(limit.error)
        finally:
            limit.close()
            self._limits.discard(limit)
