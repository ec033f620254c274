"""When to send a message that must arrive once for each boot, and when to send it again."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable

FIRST_PAUSE_S = 0.5
"""The pause after the first failed attempt. Each next one is twice as long."""

NOW = -math.inf
"""A moment that has always passed."""

MAX_REMEMBERED = 1024
"""Boots that are remembered as acknowledged. Sending an older one again would do no harm."""


def _with_jitter(pause_s: float) -> float:
    """Up to a quarter less, so that workers that failed together do not retry together."""
    return pause_s * random.uniform(0.75, 1.0)  # noqa: S311 - no secret


class RetrySchedule:
    """Capped exponential backoff until the message about a boot is acknowledged. A new boot is due at once."""

    def __init__(self, max_pause_s: float, jitter: Callable[[float], float] = _with_jitter) -> None:
        self._max_pause_s = max_pause_s
        self._jitter = jitter
        self._acknowledged: deque[str] = deque(maxlen=MAX_REMEMBERED)
        self._boot_id: str | None = None
        self._pause_s = FIRST_PAUSE_S
        self._next_attempt = NOW

    def acknowledged(self, boot_id: str) -> bool:
        """Whether the message about that boot was acknowledged."""
        return boot_id in self._acknowledged

    def next_due_at(self, boot_id: str) -> float:
        """When the message about that boot is due; infinity once it is acknowledged."""
        if self.acknowledged(boot_id):
            return math.inf
        return self._next_attempt if boot_id == self._boot_id else NOW

    def succeeded(self, boot_id: str) -> None:
        """The message was acknowledged."""
        self._acknowledged.append(boot_id)
        self._boot_id = None

    def failed(self, boot_id: str, now: float) -> float:
        """The attempt failed. Returns the pause until the next one, in seconds."""
        if boot_id != self._boot_id:
            self._boot_id, self._pause_s = boot_id, FIRST_PAUSE_S
        pause_s = self._jitter(min(self._pause_s, self._max_pause_s))
        self._pause_s = min(2 * self._pause_s, self._max_pause_s)
        self._next_attempt = now + pause_s
        return pause_s

    def start_over(self) -> None:
        """The receiver has lost its state: every boot is due again. An attempt that failed keeps its pause."""
        self._acknowledged.clear()
