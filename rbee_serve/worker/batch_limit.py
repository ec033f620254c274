"""The largest batch that a model computes at once: what is configured, or after an out-of-memory what fitted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

LOWERED_S = 600.0
"""Seconds for which a limit stays lowered. Memory may have run out because another process took it for a moment; where
it is always short, one batch in ten minutes is computed in halves."""


class BatchLimit:
    """The limit on the cost of a batch, in the unit of `Batcher`'s sizes. May be used from any thread."""

    def __init__(self, configured: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._configured = configured
        self._lowered = configured
        self._lowered_until = 0.0
        self._clock = clock

    @property
    def cost(self) -> int:
        """The limit now."""
        return self._lowered if self._clock() < self._lowered_until else self._configured

    def lower(self, failed_cost: int, cost: int) -> None:
        """A batch of `failed_cost` ran out of memory: none may cost more than `cost` for a while."""
        cost = max(1, min(cost, self.cost))
        logger.warning("a batch of cost %d ran out of memory; batches cost at most %d for now", failed_cost, cost)
        self._lowered, self._lowered_until = cost, self._clock() + LOWERED_S
