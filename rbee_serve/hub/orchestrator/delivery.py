"""A message that has to arrive once for each boot: when to try it, and when to try again."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable

FIRST_PAUSE_S = 0.5
"""The pause after the first try that failed. Each next one is twice as long."""

AT_ONCE = -math.inf
"""A moment that has always passed."""

_REMEMBERED = 1024
"""Boots that are remembered as delivered. Telling an older one again would do no harm."""


def _shortened(pause_s: float) -> float:
    """Up to a quarter less, so that workers which failed together do not come back together."""
    return pause_s * random.uniform(0.75, 1.0)  # noqa: S311 - nothing to guess here


class RetrySchedule:
    """Capped exponential backoff until the message about a boot is acknowledged. A new boot is tried at once."""

    def __init__(self, longest_pause_s: float, jitter: Callable[[float], float] = _shortened) -> None:
        self._longest_pause_s = longest_pause_s
        self._jitter = jitter
        self._delivered: deque[str] = deque(maxlen=_REMEMBERED)
        self._trying: str | None = None
        self._pause_s = FIRST_PAUSE_S
        self._next_try = AT_ONCE

    def delivered(self, boot_id: str) -> bool:
        """Whether the message about that boot was acknowledged."""
        return boot_id in self._delivered

    def next_due_at(self, boot_id: str) -> float:
        """When the message about that boot is to be sent: at once, at a moment, or (infinity) not any more."""
        if self.delivered(boot_id):
            return math.inf
        return self._next_try if boot_id == self._trying else AT_ONCE

    def succeeded(self, boot_id: str) -> None:
        """It was acknowledged."""
        self._delivered.append(boot_id)
        self._trying = None

    def failed(self, boot_id: str, now: float) -> float:
        """It was not. Returns the pause until the next try, in seconds."""
        if boot_id != self._trying:
            self._trying, self._pause_s = boot_id, FIRST_PAUSE_S
        pause_s = self._jitter(min(self._pause_s, self._longest_pause_s))
        self._pause_s = min(2 * self._pause_s, self._longest_pause_s)
        self._next_try = now + pause_s
        return pause_s

    def start_over(self) -> None:
        """The receiver has forgotten everything: tell it again, beginning now. Tries under way keep their pace."""
        self._delivered.clear()
