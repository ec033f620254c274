"""The one thread that an engine works in, where its library blocks and may be used by one thread at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from rbee_serve.step_clock import StepClock

T = TypeVar("T")

_NO_MORE: Any = object()


class EngineThread:
    """Runs blocking generators in a thread of its own, and each only one item ahead of its reader.

    Several at once take turns, item by item, so that a short request does not wait for the whole of a long one. An item
    is a step of the engine.
    """

    def __init__(self, steps: StepClock) -> None:
        self._steps = steps
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def iterate(self, work: Generator[T, None, None]) -> AsyncGenerator[T, None]:
        """What `work` yields. Closing this closes `work`, at the latest after the item that is being made."""
        loop = asyncio.get_running_loop()
        ahead = loop.run_in_executor(self._pool, self._next, work)
        try:
            while True:
                with self._steps.expected():
                    item = await ahead
                if item is _NO_MORE:
                    return
                ahead = loop.run_in_executor(self._pool, self._next, work)
                yield item
        finally:
            if not ahead.cancel() and not ahead.cancelled():
                ahead.exception()  # nobody will ask for it
            with suppress(RuntimeError):  # the thread has been ended
                self._pool.submit(work.close)

    def close(self) -> None:
        """End the thread, after the item that is being made."""
        self._pool.shutdown(cancel_futures=True)

    def _next(self, work: Generator[T, None, None]) -> T:
        item: T = next(work, _NO_MORE)
        self._steps.step()
        return item
