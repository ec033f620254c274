"""Whether an engine gets on: alive, ready and making progress are three different answers."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


CELLS = 3
"""Numbers that a clock keeps: when the last step was, how many wait for one, and how many there have been."""
_LAST, _PENDING, _STEPS = range(CELLS)


class Watchdog:
    """An engine's steps, and what it owes.

    A step is the smallest piece of work that the engine finishes for itself: one pass over a batch, one denoising step,
    one window of audio. One that has work and makes no step for `longest_s` seconds hangs, until it makes one. A busy
    engine makes steps, however many requests wait for it. May be used from any thread.
    """

    def __init__(self, longest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_s = longest_s
        self._clock = clock
        self._lock = threading.Lock()
        self._cells: list[float] | memoryview[float] = [clock(), 0, 0]
        self._hangs_since: float | None = None

    def share(self, cells: memoryview[float]) -> None:
        """Keep the numbers in this memory (`CELLS` of 8 bytes), where the clock of another process keeps them too: one
        of both makes the steps, the other looks."""
        if not cells[_LAST]:
            cells[_LAST] = self._cells[_LAST]
        self._cells = cells

    def step(self) -> None:
        """The engine has made a step."""
        self._cells[_LAST] = self._clock()
        self._cells[_STEPS] += 1

    @contextmanager
    def working(self) -> Iterator[None]:
        """While the block runs the engine has work, so steps are to be expected."""
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
        """`outputs`, where steps are expected while the next one is waited for, and not while the reader is busy."""
        while True:
            with self.working():
                try:
                    output = await anext(outputs)
                except StopAsyncIteration:
                    return
            yield output

    @property
    def last_progress_age_s(self) -> float | None:
        """Seconds since the last step, or since there is work; None while nothing is expected."""
        return self._clock() - self._cells[_LAST] if self._cells[_PENDING] else None

    def is_stalled(self) -> bool:
        """Whether the engine hangs. That stays true when its requests have been given up."""
        age_s = self.last_progress_age_s
        if age_s is not None and age_s > self._longest_s:
            self._hangs_since = self._cells[_STEPS]
        return self._hangs_since == self._cells[_STEPS]
