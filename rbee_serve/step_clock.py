"""Whether an engine gets on: alive, ready and making progress are three different answers."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class StepClock:
    """An engine's steps, and what it owes.

    A step is the smallest piece of work that the engine finishes for itself: one pass over a batch, one denoising step,
    one window of audio. One that has work and makes no step for `longest_s` seconds hangs, until it makes one. A busy
    engine makes steps, however many requests wait for it. May be used from any thread.
    """

    def __init__(self, longest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_s = longest_s
        self._clock = clock
        self._lock = threading.Lock()
        self._last = clock()
        self._owed = 0
        self._hangs = False

    def step(self) -> None:
        """The engine has made a step."""
        self._last = self._clock()
        self._hangs = False

    @contextmanager
    def expected(self) -> Iterator[None]:
        """While the block runs the engine has work, so steps are to be expected."""
        with self._lock:
            if self._owed == 0:
                self._last = self._clock()
            self._owed += 1
        try:
            yield
        finally:
            with self._lock:
                self._owed -= 1

    async def awaited(self, outputs: AsyncIterator[T]) -> AsyncGenerator[T, None]:
        """`outputs`, where steps are expected while the next one is waited for, and not while the reader is busy."""
        while True:
            with self.expected():
                try:
                    output = await anext(outputs)
                except StopAsyncIteration:
                    return
            yield output

    @property
    def last_progress_age_s(self) -> float | None:
        """Seconds since the last step, or since there is work; None while nothing is expected."""
        return self._clock() - self._last if self._owed else None

    def hangs(self) -> bool:
        """Whether the engine hangs. That stays true when its requests have been given up."""
        age_s = self.last_progress_age_s
        if age_s is not None and age_s > self._longest_s:
            self._hangs = True
        return self._hangs
