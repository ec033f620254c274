"""How many inference requests a key may have: at once, and in a minute."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from rbee_serve.errors import RateLimited

WINDOW_S = 60.0


class RequestLimit:
    """A context manager around one request; several may be open at once. The slot is free when it is left, however."""

    def __init__(
        self, at_once: int | None, per_minute: int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._at_once = at_once
        self._per_minute = per_minute
        self._clock = clock
        self._admitted_at: deque[float] = deque()
        """When the requests of the last minute began, if those are limited."""
        self.ongoing = 0
        """Requests that are open now."""
        self.admitted = 0
        """Requests so far."""
        self.refused = 0
        """Requests so far that were one too many."""

    def __enter__(self) -> None:
        """Raises `RateLimited` if the key has as many requests as it may have."""
        if self._at_once is not None and self.ongoing >= self._at_once:
            raise self._refusal(f"this key has {self.ongoing} requests at once; wait until one of them is done", 1)
        if self._per_minute is not None:
            now = self._clock()
            while self._admitted_at and self._admitted_at[0] <= now - WINDOW_S:
                self._admitted_at.popleft()
            if len(self._admitted_at) >= self._per_minute:
                wait_s = max(1, math.ceil(self._admitted_at[0] + WINDOW_S - now))
                message = f"this key has sent {self._per_minute} requests in a minute; wait {wait_s} s"
                raise self._refusal(message, wait_s)
            self._admitted_at.append(now)
        self.ongoing += 1
        self.admitted += 1

    def __exit__(self, *exc: object) -> None:
        self.ongoing -= 1

    def _refusal(self, message: str, retry_after_s: int) -> RateLimited:
        self.refused += 1
        error = RateLimited(message)
        error.retry_after_s = retry_after_s
        return error
