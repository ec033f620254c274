"""Who may work now, who waits, who is refused.

The replica decides this, not Ray Serve: Serve counts per handle, and what it holds back also holds back control calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from rbee_serve.errors import InsufficientResources


class Admission:
    """`capacity` requests run at once, up to `queue` more wait in the order of their arrival, the next is refused."""

    def __init__(self, capacity: int, queue: int, on_change: Callable[[], None] = lambda: None) -> None:
        self.capacity = capacity
        self.queue = queue
        self.running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._on_change = on_change

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """A place to work in, from when it is free until the block is left. Raises `InsufficientResources` at once
        where the queue is full."""
        await self._enter()
        try:
            yield
        finally:
            self._leave()

    async def _enter(self) -> None:
        if self.running < self.capacity:
            self.running += 1
            self._on_change()
            return
        if len(self._waiting) >= self.queue:
            raise InsufficientResources(
                f"{self.running} requests run and {len(self._waiting)} wait, which is all that this worker takes; "
                "try again later"
            )
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._on_change()
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled in the moment after its turn came: the place goes to the next one.
            if turn.done() and not turn.cancelled():
                self._leave()
            else:
                with suppress(ValueError):  # `_leave` may have dropped it already
                    self._waiting.remove(turn)
                self._on_change()
            raise

    def _leave(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # the place changes hands: `running` stays as it is
                break
        else:
            self.running -= 1
        self._on_change()
