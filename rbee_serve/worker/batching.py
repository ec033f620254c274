"""Work of many requests, done together, for models that take a batch at a time and know nothing of streams.

    request ──→ items ─┐
    request ──→ items ─┼─→ wait for their turn ──→ a batch of like sizes ──→ a lane ──→ results, in order
    request ──→ items ─┘

There is no tick: an item that comes while the model is free is worked on at once, and alone. While the model is busy
items gather, and when it is free again the next batch is taken from all of them.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from rbee_serve.worker.watchdog import Watchdog

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

MAX_WAIT_S = 0.02
"""The longest that a lane waits for more, while others work on more than twice as much as is there."""


@dataclass(order=True, slots=True)
class _Entry(Generic[ItemT, ResultT]):
    """An item that waits, ordered by its turn."""

    turn: float
    number: int
    request: int = field(compare=False)
    size: int = field(compare=False)
    item: ItemT = field(compare=False)
    result: asyncio.Future[ResultT] = field(compare=False)


class Batcher(Generic[ItemT, ResultT]):
    """Gathers the items of all requests into batches for `run`, which returns a result for each item. It is called in
    `concurrency` threads of its own, each with one batch at a time. Waiting items are divided among the free threads.
    `enter` is called in that thread before each batch, with whether the batch is all the work there is.

    `size` says how long an item is, such as its tokens. All items of a batch are padded to the longest: so long times
    their number is at most `budget`, unless a single item is longer. `overhead` is what a batch costs beside its items,
    in the same unit: items of different lengths go together where the padding costs less than another batch would.
    If they are not `padded`, lengths do not matter, only their sum.

    Requests that wait share the model alike: of each as much is taken as of the others, so that a request of one item
    does not wait behind all of one with hundreds.

    Where `run` raises, the batch is halved until the item is alone that it fails on: only that one's request fails.
    """

    def __init__(
        self,
        run: Callable[[list[ItemT]], Iterable[ResultT]],
        size: Callable[[ItemT], int],
        *,
        budget: int,
        overhead: int,
        steps: Watchdog,
        concurrency: int = 1,
        enter: Callable[[bool], object] = lambda alone: None,
        padded: bool = True,
    ) -> None:
        self._run = run
        self._size = size
        self._budget = budget
        self._overhead = overhead
        self._steps = steps
        self._lanes = concurrency
        self._enter_lane = enter
        self._padded = padded
        self._threads = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="model")
        self._numbers = count()
        self._now = 0.0
        """What each request that has been waiting all the time has had done by now, in units of size."""
        self._busy = 0
        """Lanes with a batch."""
        self._at_work = 0
        """What these are worked on in all, in units of size."""
        self._news = asyncio.Event()
        """An item has come, or a lane is free."""
        self._waiting: list[_Entry[ItemT, ResultT]] = []
        self._work: set[asyncio.Task[None]] = set()
        """One task for each lane that is busy."""

    async def results(self, items: Sequence[ItemT]) -> AsyncGenerator[ResultT, None]:
        """The result of each item, in order, as soon as it and those before it are there. Raises what `run` raised on
        an item. Closing the generator withdraws what is not yet worked on."""
        entries = self._enter(items)
        try:
            for entry in entries:
                yield await entry.result
        finally:
            self._withdraw(entries)

    def close(self) -> None:
        """End the threads once their batches are done."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _enter(self, items: Sequence[ItemT]) -> list[_Entry[ItemT, ResultT]]:
        loop = asyncio.get_running_loop()
        request, turn, entries = next(self._numbers), self._now, []
        for item in items:
            entry: _Entry[ItemT, ResultT] = _Entry(
                turn, next(self._numbers), request, max(1, self._size(item)), item, loop.create_future()
            )
            insort(self._waiting, entry)
            entries.append(entry)
            turn += entry.size
        self._news.set()
        self._work = {task for task in self._work if not task.done()}
        for _ in range(min(self._lanes - len(self._work), len(entries))):
            self._work.add(loop.create_task(self._work_off()))
        return entries

    def _withdraw(self, entries: Iterable[_Entry[ItemT, ResultT]]) -> None:
        for entry in entries:
            if entry.result.done() and not entry.result.cancelled():
                entry.result.exception()  # it has been seen: asyncio need not tell of it
            entry.result.cancel()
        self._waiting = [entry for entry in self._waiting if not entry.result.cancelled()]

    async def _work_off(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await self._gather()
            if not self._waiting:
                break
            batch = self._take()
            size = sum(entry.size for entry in batch)
            self._busy += 1
            self._at_work += size
            alone = self._busy == 1 and not self._waiting
            try:
                with self._steps.working():
                    outcomes = await loop.run_in_executor(
                        self._threads, self._outcomes, [entry.item for entry in batch], alone
                    )
            finally:
                self._busy -= 1
                self._at_work -= size
                self._news.set()
            for entry, outcome in zip(batch, outcomes, strict=True):
                if entry.result.cancelled():
                    continue
                if isinstance(outcome, Exception):
                    entry.result.set_exception(outcome)
                else:
                    entry.result.set_result(outcome)

    async def _gather(self) -> None:
        """While other lanes have much more to do than waits here, more is likely to come: their clients' next requests.
        Small batches beside large ones would spend the cores on what a batch costs beside its items."""
        deadline = time.monotonic() + MAX_WAIT_S
        while self._busy and sum(entry.size for entry in self._waiting) * 2 * self._busy < self._at_work:
            self._news.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._news.wait()
            except TimeoutError:
                return

    def _take(self) -> list[_Entry[ItemT, ResultT]]:
        """The next batch: the item whose turn it is, and those of like size among the next ones."""
        candidates: list[_Entry[ItemT, ResultT]] = []
        share = sum(entry.size for entry in self._waiting) // (self._lanes - self._busy)
        room = min(self._budget, max(share, self._overhead))
        for entry in self._waiting:
            room -= entry.size
            if candidates and room < 0:
                break
            candidates.append(entry)
        first = self._waiting[0]
        taken = next(batch for batch in self._cut(candidates) if first in batch) if self._padded else candidates
        requests = len({entry.request for entry in self._waiting})
        self._now += sum(entry.size for entry in taken) / requests
        numbers = {entry.number for entry in taken}
        self._waiting = [entry for entry in self._waiting if entry.number not in numbers]
        return taken

    def _cut(self, entries: list[_Entry[ItemT, ResultT]]) -> Iterator[list[_Entry[ItemT, ResultT]]]:
        """`entries` in batches of like sizes, the shortest first."""
        batch: list[_Entry[ItemT, ResultT]] = []
        padding = 0
        for entry in sorted(entries, key=lambda entry: entry.size):
            more = len(batch) * (entry.size - batch[-1].size) if batch else 0
            if padding + more > self._overhead or (len(batch) + 1) * entry.size > self._budget:
                if batch:
                    yield batch
                batch, padding, more = [], 0, 0
            batch.append(entry)
            padding += more
        yield batch

    def _outcomes(self, items: list[ItemT], alone: bool) -> list[ResultT | Exception]:
        """Runs in a lane's thread."""
        self._enter_lane(alone)
        try:
            return [result for _, result in zip(items, self._run(items), strict=True)]
        except Exception as exc:
            if len(items) == 1:
                return [exc]
        finally:
            self._steps.step()
        # Not within `except`: until it is left, the exception keeps alive what ran out of memory.
        half = len(items) // 2
        return self._outcomes(items[:half], alone) + self._outcomes(items[half:], alone)
