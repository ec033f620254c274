"""Pushes a replica's state to the hub: twice a second and on change."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from rbee_serve.state import ReplicaState

logger = logging.getLogger(__name__)

PERIOD_S = 0.5
MIN_GAP_S = 0.05
"""Changes that follow each other faster than this are pushed together."""
MAX_GAP_S = 0.25
"""The gap while changes keep coming: a worker with a hundred requests a second changes as often."""
PUSH_TIMEOUT_S = 2.0


class Reporter:
    """Calls `push` with the result of `observe` and a sequence number. After a failure the next push tries again: only
    the newest state is worth sending, so nothing queues up."""

    def __init__(
        self, observe: Callable[[], ReplicaState], push: Callable[[ReplicaState, int], Awaitable[object]]
    ) -> None:
        self._observe = observe
        self._push = push
        self._sequence = itertools.count(1)
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to push."""
        self._task = asyncio.create_task(self._run())

    def changed(self) -> None:
        """The state has changed: push soon. To be called in the event loop."""
        self._changed.set()

    def changed_in_thread(self) -> None:
        """The same, from any thread."""
        self._loop.call_soon_threadsafe(self._changed.set)

    async def push_now(self) -> None:
        """Push the present state and wait until the hub has it, at most `PUSH_TIMEOUT_S`."""
        try:
            async with asyncio.timeout(PUSH_TIMEOUT_S):
                await self._push(self._observe(), next(self._sequence))
        except Exception as exc:
            logger.warning("the hub did not take the state of this replica: %s: %s", type(exc).__name__, str(exc)[:300])

    async def stop(self) -> None:
        """Push no more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        gap_s = MIN_GAP_S
        while True:
            self._changed.clear()
            await self.push_now()
            await asyncio.sleep(gap_s)
            gap_s = min(2 * gap_s, MAX_GAP_S) if self._changed.is_set() else MIN_GAP_S
            with suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S):
                    await self._changed.wait()
