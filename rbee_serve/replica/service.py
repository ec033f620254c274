"""A loaded model behind admission, deadlines and ordered events: everything of a replica that does not need Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from rbee_serve.backend import InferenceBackend
from rbee_serve.config import WorkerConfig
from rbee_serve.errors import InferenceTimeout
from rbee_serve.events import Error, Event, Progress, Started
from rbee_serve.limits import with_limits
from rbee_serve.replica.admission import Admission
from rbee_serve.replica.event_stream import ordered
from rbee_serve.request import InferenceRequest, new_id
from rbee_serve.worker import WorkerSpec

POSITION_S = 1.0
"""How often a waiting request is told its position, if that has changed."""


class WorkerService:
    """Answers requests with events. `last_event_age_s` is the time since any request got on, 0 while there is none."""

    def __init__(
        self,
        worker: WorkerConfig,
        spec: WorkerSpec[Any],
        backend: InferenceBackend[Any, Any],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec = spec
        self.backend = backend
        self.request_type: type[InferenceRequest] = with_limits(spec.request, worker.limits)
        self.admission = Admission(worker.capacity or spec.default_capacity, worker.queue, on_change)
        self._worker = worker
        self._last_event = time.monotonic()

    @property
    def last_event_age_s(self) -> float:
        """Seconds since any request got on; 0 while none is running."""
        return time.monotonic() - self._last_event if self.admission.running else 0.0

    def events(self, request: InferenceRequest) -> AsyncGenerator[Event[Any], None]:
        """Every event of a request: `started`, its position while it waits, then the backend's, and the end.

        What prevents the work is raised before the first event: `InsufficientResources`, `InferenceTimeout`, or the
        backend's own refusal. Closing the generator stops the work.
        """
        timeout_s = min(request.timeout_s or self._worker.timeout_s, self._worker.timeout_s)
        return _within(timeout_s, self._admitted(request))

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
            self._last_event = time.monotonic()
            async with aclosing(work):
                async for event in work:
                    self._last_event = time.monotonic()
                    yield event


async def _within(timeout_s: float, events: AsyncGenerator[Event[Any], None]) -> AsyncGenerator[Event[Any], None]:
    """`events`, until `timeout_s` seconds from now. What is late is stopped; the client is told in the way that is
    left: by an exception before the first event, by an `Error` event after it."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    begun = False
    try:
        async with aclosing(events):
            while True:
                # Around each event and not around all: a timeout must not be in force while the reader is busy.
                async with asyncio.timeout_at(deadline):
                    event = await anext(events, None)
                if event is None:
                    return
                begun = True
                yield event
    except TimeoutError as exc:
        late = InferenceTimeout(f"the work was not done in {timeout_s:g} s; ask for less, or allow more with timeout_s")
        if not begun:
            raise late from exc
        yield Error.from_exception(late)
