"""Batches of items across requests, for models that compute a batch at a time and know nothing of streams.

    request ──→ items ─┐
    request ──→ items ─┼─→ queue, ordered by start tag ──→ a batch of similar sizes ──→ a thread ──→ results, in order
    request ──→ items ─┘

There is no fixed batching delay: an item that arrives while the model is free is computed at once, alone. While the
model is busy items queue up, and the next batch is taken from all of them. The order is that of start-time fair
queueing (Goyal, Vin, Cheng, 1996): an item's start tag is the virtual time of its arrival plus the cost of the
request's items before it, and virtual time advances by the cost of each batch, divided by the number of waiting
requests. So each request receives the same share of the model.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from rbee_serve.worker.batch_limit import BatchLimit
from rbee_serve.worker.engine_failure import EngineFailure, engine_failure
from rbee_serve.worker.model_code import without_stop_iteration
from rbee_serve.worker.watchdog import Watchdog

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MAX_WAIT_S = 0.02
"""The longest that a free thread waits for more items, while the others compute more than twice what is queued."""


@dataclass(order=True, slots=True)
class _Entry(Generic[ItemT, ResultT]):
    """A queued item, ordered by its start tag."""

    start_tag: float
    serial: int
    request: int = field(compare=False)
    size: int = field(compare=False)
    item: ItemT = field(compare=False)
    result: asyncio.Future[ResultT] = field(compare=False)


class Batcher(Generic[ItemT, ResultT]):
    """Collects the items of all requests into batches for `run`, which returns a result for each item. `run` is called
    in `concurrency` threads, each with one batch at a time; queued items are divided among the free threads.
    `before_batch` is called in the thread before each batch, with True if the batch is all the work there is.

    `size` returns the size of an item, such as its number of tokens. All items of a batch are padded to the largest:
    the largest size times the number of items is at most `max_batch_cost`, unless a single item is larger.
    `batch_overhead` is the cost of a batch beside its items, in the same unit: items of different sizes share a batch
    where the padding costs less than another batch would. Without `padded` only the sum of the sizes counts.

    Waiting requests share the model equally, so a request of one item does not wait behind one of hundreds.

    Where `run` or `before_batch` raises, the batch is halved until the failing item is alone: only that
    item's request fails. After an out-of-memory batches are limited to what fitted (`BatchLimit`).
    """

    def __init__(
        self,
        run: Callable[[list[ItemT]], Iterable[ResultT]],
        size: Callable[[ItemT], int],
        *,
        max_batch_cost: int,
        watchdog: Watchdog,
        batch_overhead: int = 0,
        concurrency: int = 1,
        before_batch: Callable[[bool], object] = lambda alone: None,
        padded: bool = True,
    ) -> None:
        self._run = without_stop_iteration(run)
        self._size = size
        self._limit = BatchLimit(max_batch_cost)
        self._batch_overhead = batch_overhead
        self._watchdog = watchdog
        self._concurrency = concurrency
        self._before_batch = without_stop_iteration(before_batch)
        self._padded = padded
        self._threads = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="model")
        self._serials = count()
        self._virtual_time = 0.0
        """The cost computed so far for a request that has been waiting all the time."""
        self._busy = 0
        """Threads with a batch."""
        self._running_cost = 0
        """The sum of the sizes in these batches."""
        self._changed = asyncio.Event()
        """Set when an item arrives or a thread becomes free."""
        self._queue: list[_Entry[ItemT, ResultT]] = []
        self._workers: set[asyncio.Task[None]] = set()
        """One task for each busy thread."""

    async def results(self, items: Sequence[ItemT]) -> AsyncGenerator[ResultT, None]:
        """The result of each item, in order, as soon as it and those before it are ready. Raises what `run` raised for
        an item. Closing the generator withdraws the items that are not being computed."""
        entries = self._enqueue(items)
        try:
            for entry in entries:
                yield await entry.result
        finally:
            self._withdraw(entries)

    async def result(self, item: ItemT) -> ResultT:
        """The result of a single item; see `results`."""
        async with aclosing(self.results([item])) as results:
            return await anext(results)

    def close(self) -> None:
        """End the threads once their batches are done."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _enqueue(self, items: Sequence[ItemT]) -> list[_Entry[ItemT, ResultT]]:
        loop = asyncio.get_running_loop()
        request, start_tag, entries = next(self._serials), self._virtual_time, []
        for item in items:
            entry: _Entry[ItemT, ResultT] = _Entry(
                start_tag, next(self._serials), request, max(1, self._size(item)), item, loop.create_future()
            )
            insort(self._queue, entry)
            entries.append(entry)
            start_tag += entry.size
        self._changed.set()
        self._workers = {task for task in self._workers if not task.done()}
        for _ in range(min(self._concurrency - len(self._workers), len(entries))):
            self._workers.add(loop.create_task(self._run_batches()))
        return entries

    def _withdraw(self, entries: Iterable[_Entry[ItemT, ResultT]]) -> None:
        for entry in entries:
            if entry.result.done() and not entry.result.cancelled():
                entry.result.exception()  # marks it as retrieved, so that asyncio does not log it
            entry.result.cancel()
        self._queue = [entry for entry in self._queue if not entry.result.cancelled()]

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            await self._wait_for_more()
            if not self._queue:
                break
            batch = self._next_batch()
            cost = sum(entry.size for entry in batch)
            self._busy += 1
            self._running_cost += cost
            alone = self._busy == 1 and not self._queue
            try:
                with self._watchdog.working():
                    outcomes = await loop.run_in_executor(self._threads, self._outcomes, batch, alone)
            finally:
                self._busy -= 1
                self._running_cost -= cost
                self._changed.set()
            for entry, outcome in zip(batch, outcomes, strict=True):
                if entry.result.cancelled():
                    continue
                if isinstance(outcome, Exception):
                    entry.result.set_exception(outcome)
                else:
                    entry.result.set_result(outcome)

    async def _wait_for_more(self) -> None:
        """While the other threads have much more to compute than is queued here, more items are likely to arrive: their
        clients' next requests. Small batches beside large ones would spend the cores on the overhead of a batch."""
        deadline = time.monotonic() + MAX_WAIT_S
        while self._busy and sum(entry.size for entry in self._queue) * 2 * self._busy < self._running_cost:
            self._changed.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _next_batch(self) -> list[_Entry[ItemT, ResultT]]:
        """Remove the next batch from the queue: the first item, and those of similar size among the next ones."""
        candidates: list[_Entry[ItemT, ResultT]] = []
        share = sum(entry.size for entry in self._queue) // (self._concurrency - self._busy)
        remaining_cost = min(self._limit.cost, max(share, self._batch_overhead))
        for entry in self._queue:
            remaining_cost -= entry.size
            if candidates and remaining_cost < 0:
                break
            candidates.append(entry)
        first = self._queue[0]
        taken = next(group for group in self._grouped(candidates) if first in group) if self._padded else candidates
        requests = len({entry.request for entry in self._queue})
        self._virtual_time += sum(entry.size for entry in taken) / requests
        serials = {entry.serial for entry in taken}
        self._queue = [entry for entry in self._queue if entry.serial not in serials]
        return taken

    def _grouped(self, entries: list[_Entry[ItemT, ResultT]]) -> Iterator[list[_Entry[ItemT, ResultT]]]:
        """`entries` in batches of similar sizes, the smallest first."""
        batch: list[_Entry[ItemT, ResultT]] = []
        padding, limit = 0, self._limit.cost
        for entry in sorted(entries, key=lambda entry: entry.size):
            more = len(batch) * (entry.size - batch[-1].size) if batch else 0
            if padding + more > self._batch_overhead or (len(batch) + 1) * entry.size > limit:
                if batch:
                    yield batch
                batch, padding, more = [], 0, 0
            batch.append(entry)
            padding += more
        yield batch

    def _outcomes(self, batch: list[_Entry[ItemT, ResultT]], alone: bool) -> list[ResultT | Exception]:
        """Runs in a thread of the model."""
        out_of_memory = False
        if len(batch) == 1 or self._cost(batch) <= self._limit.cost:
            items = [entry.item for entry in batch]
            try:
                self._before_batch(alone)
                return [result for _, result in zip(items, self._run(items), strict=True)]
            except Exception as exc:
                if len(batch) == 1:
                    return [exc]
                out_of_memory = engine_failure(exc) in (EngineFailure.NO_VRAM, EngineFailure.NO_RAM)
            finally:
                self._watchdog.step()
        # Outside of `except`: until that block is left, the exception keeps the memory alive that ran out.
        halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        if out_of_memory:
            self._limit.lower(self._cost(batch), max(map(self._cost, halves)))
        return self._outcomes(halves[0], alone) + self._outcomes(halves[1], alone)

    def _cost(self, batch: Sequence[_Entry[ItemT, ResultT]]) -> int:
        """What a batch costs, padding included."""
        sizes = [entry.size for entry in batch]
        return len(sizes) * max(sizes) if self._padded else sum(sizes)
