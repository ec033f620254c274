"""Who may work now, who waits, who is refused.

The replica decides this, not Ray Serve: Serve counts per handle, and what it holds back also holds back control calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from rbee_serve.errors import InsufficientResources


class Slot:
    """A request's place: among the running ones, or in the queue. Leave it with the `with` block."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._turn = asyncio.get_running_loop().create_future()

    @property
    def admitted(self) -> bool:
        """Whether it may work."""
        return self._turn.done()

    @property
    def position(self) -> int:
        """How many come before it, itself counted; 0 once admitted."""
        return 0 if self.admitted else self._admission.position(self)

    async def wait(self, longest_s: float) -> bool:
        """Wait for the turn, at most `longest_s` seconds. Whether it has come."""
        await asyncio.wait([self._turn], timeout=longest_s)
        return self.admitted

    def admit(self) -> None:
        """Its turn has come."""
        self._turn.set_result(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._admission.leave(self)


class Admission:
    """`capacity` requests run at once, up to `queue` more wait in the order of their arrival, the next is refused."""

    def __init__(self, capacity: int, queue: int, on_change: Callable[[], None] = lambda: None) -> None:
        self.capacity = capacity
        self.queue = queue
        self.running = 0
        self._waiting: deque[Slot] = deque()
        self._on_change = on_change

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def enter(self) -> Slot:
        """A place, admitted or waiting. Raises `InsufficientResources` at once where the queue is full."""
        place = Slot(self)
        if self.running < self.capacity:
            self.running += 1
            place.admit()
        elif len(self._waiting) < self.queue:
            self._waiting.append(place)
        else:
            raise InsufficientResources(
                f"{self.running} requests run and {len(self._waiting)} wait, which is all that this worker takes; "
                "try again later"
            )
        self._on_change()
        return place

    def position(self, place: Slot) -> int:
        """Where a waiting place stands: 1 is next."""
        return self._waiting.index(place) + 1

    def leave(self, place: Slot) -> None:
        """Give up a place. A running one goes to whoever has waited longest."""
        if not place.admitted:
            self._waiting.remove(place)
        elif self._waiting:
            self._waiting.popleft().admit()
        else:
            self.running -= 1
        self._on_change()
