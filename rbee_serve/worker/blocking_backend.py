"""`BlockingBackend`: a backend whose author writes one generator."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing
from typing import Any, Generic, TypeVar, cast

import msgspec

from rbee_serve.events import Event, Metrics, Narration, Output, Progress
from rbee_serve.outputs import OutputValue
from rbee_serve.request import InferenceRequest
from rbee_serve.state import MemorySource
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.engine_thread import EngineThread
from rbee_serve.worker.memory import memory_gauge
from rbee_serve.worker.request_clock import RequestClock
from rbee_serve.worker.spec import LoadContext

RequestT = TypeVar("RequestT", bound=InferenceRequest)
OutputT = TypeVar("OutputT", bound=OutputValue)


class BlockingBackend(InferenceBackend[RequestT, OutputT], Generic[RequestT, OutputT]):
    """A model that blocks while it computes, as in most Python libraries. Override `predict`, and use the class as the
    `load` of a `WorkerSpec`: load the model in `__init__`, after `super().__init__(context)`.

    The library adds the thread, the watchdog, cancellation, the index `i` of each output, `metrics` and `end`. Requests
    take turns after each item that `predict` yields, so a short request does not wait for a long one. `BatchedBackend`
    is for a model that computes items of several requests in one batch.
    """

    def __init__(self, context: LoadContext) -> None:
        self._thread = EngineThread(context.watchdog)
        self._memory = memory_gauge(context.device)
        self._open = 0

    @abstractmethod
    def predict(self, request: RequestT) -> Iterator[OutputT | Progress | Narration | Metrics]:
        """Compute the outputs of one request, in order; their `i` is set by the library. `Progress` and `Narration` are
        sent where they are yielded; the values of `Metrics` are added to those at the end.

        Runs in the one thread of the model. Each item is a step for the watchdog, so the longest pause between two
        items must be shorter than `hang_timeout_s`. A disconnect closes the generator at its next `yield`. An error
        raised before the first item, such as `InvalidRequest`, becomes an HTTP status; a later one an `error` event.
        """

    async def execute(self, request: RequestT) -> AsyncGenerator[Event[OutputT], None]:
        """See `InferenceBackend.execute`."""
        clock = RequestClock()
        counts, metrics = Counter[type[OutputValue]](), dict[str, float | int]()
        async with aclosing(self._thread.iterate(self._items(request))) as items:
            async for item in items:
                if isinstance(item, OutputValue):
                    clock.mark_output()
                    index = counts[type(item)]
                    counts[type(item)] += 1
                    yield Output(msgspec.structs.replace(cast("OutputT", item), i=index))
                elif isinstance(item, Metrics):
                    metrics |= item.values
                else:
                    yield item
        total = counts.total()
        for event in clock.complete(self, clock.rates(total) | metrics, tokens_out=total):
            yield event

    def memory_bytes(self) -> int:
        """Bytes that this process and its children hold: on the GPU where the driver reports it, else in RAM."""
        return self._memory()

    def memory_source(self) -> MemorySource | None:
        """How they were counted."""
        return self._memory.source

    def engine_requests(self) -> int:
        """Requests whose generator is open."""
        return self._open

    def close(self) -> None:
        """End the thread after the item that is being computed."""
        self._thread.close()

    def _items(self, request: RequestT) -> Generator[Any, None, None]:
        """Runs in the thread of the model; only that thread changes the count."""
        self._open += 1
        try:
            yield from self.predict(request)
        finally:
            self._open -= 1
