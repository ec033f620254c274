"""Admission of requests: run now, wait in a queue, or be refused.

The replica decides this, not Ray Serve: Serve counts requests per handle, and a request that it queues also holds back
control calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from rbee_serve.errors import InsufficientResources


class Slot:
    """A running slot or a queue position. The end of the `with` block frees it."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._turn = asyncio.get_running_loop().create_future()

    @property
    def admitted(self) -> bool:
        """Whether the request may run."""
        return self._turn.done()

    @property
    def position(self) -> int:
        """The position in the queue: 1 is next, 0 is admitted."""
        return 0 if self.admitted else self._admission.position(self)

    async def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds for admission. Return whether the request is admitted."""
        await asyncio.wait([self._turn], timeout=timeout_s)
        return self.admitted

    def admit(self) -> None:
        """Let the request run."""
        self._turn.set_result(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._admission.release(self)


class Admission:
    """Runs `capacity` requests at once, queues up to `max_queued` more in order of arrival, and refuses the rest.

    `on_change` is called after each change of `running` or `queued`.
    """

    def __init__(self, capacity: int, max_queued: int, on_change: Callable[[], None] = lambda: None) -> None:
        self.capacity = capacity
        self.max_queued = max_queued
        self.running = 0
        self.entered = 0
        """Requests so far that were admitted or queued."""
        self._waiting: deque[Slot] = deque()
        self._on_change = on_change

    @property
    def queued(self) -> int:
        """The number of queued requests."""
        return len(self._waiting)

    def enter(self) -> Slot:
        """A slot, admitted or queued. Raises `InsufficientResources` at once if the queue is full."""
        slot = Slot(self)
        if self.running < self.capacity:
            self.running += 1
            slot.admit()
        elif len(self._waiting) < self.max_queued:
            self._waiting.append(slot)
        else:
            raise InsufficientResources(
                f"the worker is at its limit with {self.running} running and {len(self._waiting)} queued requests; "
                "try again later"
            )
        self.entered += 1
        self._on_change()
        return slot

    def position(self, slot: Slot) -> int:
        """The position of a queued slot: 1 is next."""
        return self._waiting.index(slot) + 1

    def release(self, slot: Slot) -> None:
        """Free a slot. The longest-waiting request takes over a running one."""
        if not slot.admitted:
            self._waiting.remove(slot)
        elif self._waiting:
            self._waiting.popleft().admit()
        else:
            self.running -= 1
        self._on_change()
