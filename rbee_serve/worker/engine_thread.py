"""The one thread that an engine works in, where its library blocks and may be used by one thread at a time."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

from rbee_serve.worker.watchdog import Watchdog

T = TypeVar("T")

_NO_MORE: Any = object()

PREFETCH = 2
"""How many items are asked for before their reader asks: one is read while the next is made, without a wait between."""


class Sink(Generic[T]):
    """Where work that calls back puts what it makes, out of the engine's thread."""

    def __init__(self, steps: Watchdog, hand_over: Callable[[T], object]) -> None:
        self._steps = steps
        self._hand_over = hand_over
        self._left = threading.Event()

    def put(self, item: T) -> None:
        """Hand an item to the reader. A step too."""
        self.step()
        self._hand_over(item)

    def step(self) -> None:
        """The engine has made a step. Raises `InterruptedError` once nobody waits for the work any more."""
        self._steps.step()
        if self._left.is_set():
            raise InterruptedError("nobody waits for this work any more")

    def close(self) -> None:
        """The reader has left."""
        self._left.set()


class EngineThread:
    """Runs blocking work in a thread of its own: generators, or functions that call back. An item is a step of the
    engine."""

    def __init__(self, steps: Watchdog) -> None:
        self._steps = steps
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def iterate(self, work: Generator[T, None, None]) -> AsyncGenerator[T, None]:
        """What `work` yields, made at most `PREFETCH` items ahead of its reader. Closing this closes `work`, at the
        latest after the item that is being made.

        Several at once take turns, item by item, so that a short request does not wait for the whole of a long one.
        """
        loop = asyncio.get_running_loop()
        ahead = deque(loop.run_in_executor(self._pool, self._next, work) for _ in range(PREFETCH))
        try:
            while True:
                with self._steps.working():
                    item = await ahead[0]
                if item is _NO_MORE:
                    return
                ahead.popleft()
                ahead.append(loop.run_in_executor(self._pool, self._next, work))
                yield item
        finally:
            for future in ahead:
                _forget(future)
            with suppress(RuntimeError):  # the thread has been ended
                self._pool.submit(work.close)

    async def run_callback(self, work: Callable[[Sink[T]], object]) -> AsyncGenerator[T, None]:
        """What `work` puts into the outlet that it is called with. Closing this ends `work` at its next step.

        Several at once follow one another.
        """
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[T] = asyncio.Queue()
        sink = Sink[T](self._steps, lambda item: loop.call_soon_threadsafe(items.put_nowait, item))
        done = loop.run_in_executor(self._pool, work, sink)
        done.add_done_callback(lambda _: items.put_nowait(_NO_MORE))
        try:
            while True:
                with self._steps.working():
                    item = await items.get()
                if item is _NO_MORE:
                    break
                yield item
            await done
        finally:
            sink.close()
            _forget(done)

    def close(self) -> None:
        """End the thread, after the item that is being made."""
        self._pool.shutdown(cancel_futures=True)

    def _next(self, work: Generator[T, None, None]) -> T:
        item: T = next(work, _NO_MORE)
        self._steps.step()
        return item


def _forget(future: asyncio.Future[Any]) -> None:
    """Nobody will ask for the result, nor for the error."""
    if not future.cancel() and not future.cancelled():
        future.exception()
