"""`BatchedBackend`: a backend whose author writes the preparation of a request and the computation of a batch."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

import msgspec

from rbee_serve.events import Event, Output, Progress
from rbee_serve.outputs import OutputValue
from rbee_serve.request import InferenceRequest
from rbee_serve.state import MemorySource
from rbee_serve.worker.backend import InferenceBackend
from rbee_serve.worker.batching import Batcher
from rbee_serve.worker.memory import memory_gauge
from rbee_serve.worker.model_code import without_stop_iteration
from rbee_serve.worker.request_clock import RequestClock
from rbee_serve.worker.spec import LoadContext

RequestT = TypeVar("RequestT", bound=InferenceRequest)
ItemT = TypeVar("ItemT")
OutputT = TypeVar("OutputT", bound=OutputValue)


class BatchedBackend(InferenceBackend[RequestT, OutputT], Generic[RequestT, ItemT, OutputT]):
    """A model that computes a batch at a time, of items of equal cost: images, crops, short texts. Override `prepare`
    and `predict_batch`, and load the model in `__init__`, after `super().__init__(context, max_batch=…)`.

    The library forms the batches from the items of all requests, adds the thread, the watchdog, cancellation, the index
    `i` of each output, `metrics` and `end`. Items of different cost need a `Batcher` with their sizes.
    """

    def __init__(self, context: LoadContext, *, max_batch: int) -> None:
        self._batcher = Batcher(
            self.predict_batch, lambda item: 1, max_batch_cost=max_batch, watchdog=context.watchdog, padded=False
        )
        self._memory = memory_gauge(context.device)

    @abstractmethod
    def prepare(self, request: RequestT) -> Sequence[ItemT]:
        """The items of one request. Runs in a thread, for several requests at a time: decode files here. An error, such
        as `InvalidRequest`, becomes an HTTP status."""

    @abstractmethod
    def predict_batch(self, items: list[ItemT]) -> Sequence[OutputT]:
        """One output for each item, in order; their `i` is set by the library. Runs in the one thread of the model, and
        is a step for the watchdog. Where it raises, the batch is halved until only the request of the bad item fails.
        """

    async def execute(self, request: RequestT) -> AsyncGenerator[Event[OutputT], None]:
        """See `InferenceBackend.execute`."""
        clock = RequestClock()
        items = await asyncio.to_thread(without_stop_iteration(self.prepare), request)
        yield Progress(step=0, total=len(items))
        count = 0
        async with aclosing(self._batcher.results(items)) as outputs:
            async for output in outputs:
                clock.mark_output()
                yield Output(msgspec.structs.replace(output, i=count))
                count += 1
        for event in clock.complete(self, clock.rates(count), tokens_out=count):
            yield event

    def memory_bytes(self) -> int:
        """Bytes that this process and its children hold: on the GPU where the driver reports it, else in RAM."""
        return self._memory()

    def memory_source(self) -> MemorySource | None:
        """How they were counted."""
        return self._memory.source

    def close(self) -> None:
        """End the thread of the model after its batch."""
        self._batcher.close()
