"""Whether an engine makes progress: alive, ready and making progress are three different states."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


CELLS = 3
"""Numbers that a watchdog keeps: the time of the last step, the readers that wait for one, and the count of steps."""
_LAST, _PENDING, _STEPS = range(CELLS)


class Watchdog:
    """Records the steps of an engine, and whether it has work.

    A step is the smallest unit of work that the engine completes: a forward pass over a batch, a denoising step, a
    window of audio. An engine that has work and completes no step for `timeout_s` seconds is stalled, until its next
    step. A busy engine makes steps, however many requests wait for it. May be used from any thread.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.timeout_s = timeout_s
        """Seconds without a step, while there is work, after which the engine is stalled."""
        self._clock = clock
        self._lock = threading.Lock()
        self._cells: list[float] | memoryview[float] = [clock(), 0, 0]
        self._stalled_at: float | None = None

    def share(self, cells: memoryview[float]) -> None:
        """Keep the numbers in this memory (`CELLS` of 8 bytes), which the watchdog of another process uses too: one
        process records the steps, the other reads them."""
        if not cells[_LAST]:
            cells[_LAST] = self._cells[_LAST]
        self._cells = cells

    def step(self) -> None:
        """Record a completed step."""
        self._cells[_LAST] = self._clock()
        self._cells[_STEPS] += 1

    @contextmanager
    def working(self) -> Iterator[None]:
        """While the block runs the engine has work, so steps are expected."""
        with self._lock:
            if self._cells[_PENDING] == 0:
                self._cells[_LAST] = self._clock()
            self._cells[_PENDING] += 1
        try:
            yield
        finally:
            with self._lock:
                self._cells[_PENDING] -= 1

    async def watch(self, outputs: AsyncIterator[T]) -> AsyncGenerator[T, None]:
        """`outputs`, where steps are expected while the next one is awaited, and not while its reader is busy."""
        while True:
            with self.working():
                try:
                    output = await anext(outputs)
                except StopAsyncIteration:
                    return
            yield output

    @property
    def last_progress_age_s(self) -> float | None:
        """Seconds since the last step, or since the engine has work if that is later; None while it has none."""
        return self._clock() - self._cells[_LAST] if self._cells[_PENDING] else None

    def is_stalled(self) -> bool:
        """Whether the engine is stalled. Stays true after its requests were cancelled, until the next step."""
        age_s = self.last_progress_age_s
        if age_s is not None and age_s > self.timeout_s:
            self._stalled_at = self._cells[_STEPS]
        return self._stalled_at == self._cells[_STEPS]
