"""One thread for an engine whose library blocks and may be used by one thread at a time."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

from rbee_serve.worker.model_code import without_stop_iteration
from rbee_serve.worker.watchdog import Watchdog

T = TypeVar("T")

_END: Any = object()

PREFETCH = 2
"""Items that are requested before their reader asks: one is read while the next is computed, without a pause."""


class Sink(Generic[T]):
    """Where a function with a callback puts its items, for a reader outside of the engine's thread."""

    def __init__(self, watchdog: Watchdog, deliver: Callable[[T], object]) -> None:
        self._watchdog = watchdog
        self._deliver = deliver
        self._closed = threading.Event()

    def put(self, item: T) -> None:
        """Deliver an item to the reader. Counts as a step."""
        self.step()
        self._deliver(item)

    def step(self) -> None:
        """Record a step of the engine. Raises `InterruptedError` once the request is cancelled."""
        self._watchdog.step()
        if self._closed.is_set():
            raise InterruptedError("the request was cancelled")

    def close(self) -> None:
        """Cancel the work at its next step."""
        self._closed.set()


class EngineThread:
    """Runs blocking work in a thread of its own: generators, or functions with a callback. Each item is a step for the
    watchdog."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def iterate(self, work: Generator[T, None, None]) -> AsyncGenerator[T, None]:
        """The items of `work`, computed at most `PREFETCH` items ahead of their reader. Closing this closes `work`, at
        the latest after the item that is being computed.

        Several generators take turns, item by item, so a short request does not wait for all of a long one.
        """
        loop = asyncio.get_running_loop()
        ahead = deque(loop.run_in_executor(self._pool, self._next, work) for _ in range(PREFETCH))
        try:
            while True:
                with self._watchdog.working():
                    item = await ahead[0]
                if item is _END:
                    return
                ahead.popleft()
                ahead.append(loop.run_in_executor(self._pool, self._next, work))
                yield item
        finally:
            for future in ahead:
                _forget(future)
            with suppress(RuntimeError):  # the thread has ended
                self._pool.submit(work.close)

    async def run_callback(self, work: Callable[[Sink[T]], object]) -> AsyncGenerator[T, None]:
        """The items that `work` puts into the sink it is called with. Closing this ends `work` at its next step.

        Several calls run one after another.
        """
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[T] = asyncio.Queue()
        sink = Sink[T](self._watchdog, lambda item: loop.call_soon_threadsafe(items.put_nowait, item))
        done = loop.run_in_executor(self._pool, without_stop_iteration(work), sink)
        done.add_done_callback(lambda _: items.put_nowait(_END))
        try:
            while True:
                with self._watchdog.working():
                    item = await items.get()
                if item is _END:
                    break
                yield item
            await done
        finally:
            sink.close()
            _forget(done)

    def close(self) -> None:
        """End the thread, after the item that is being computed."""
        self._pool.shutdown(cancel_futures=True)

    def _next(self, work: Generator[T, None, None]) -> T:
        item: T = next(work, _END)
        self._watchdog.step()
        return item


def _forget(future: asyncio.Future[Any]) -> None:
    """Cancel the future, or mark its error as retrieved, so that asyncio does not log it."""
    if not future.cancel() and not future.cancelled():
        future.exception()
