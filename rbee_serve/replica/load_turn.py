"""A load's turn on its GPUs: the wait for their locks, which is shown as a stage and does not count as loading time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from rbee_serve.replica.gpu_lock import GpuLock
from rbee_serve.state import LoadProgress

POLL_S = 0.1
"""How often a load that waits looks whether it is next. A file lock notifies nobody."""


class LoadTurn:
    """The GPUs of one load. It begins without them, `wait` takes them, and `end` gives them to the next load.

    `timeout` is the time limit of the load. It stands still during the wait.
    """

    def __init__(
        self, locks: Sequence[GpuLock], report: Callable[[LoadProgress], None], timeout: asyncio.Timeout
    ) -> None:
        self._locks, self._report, self._timeout = locks, report, timeout
        self._loop = asyncio.get_running_loop()
        self._taking: asyncio.Task[None] | None = None

    @property
    def others_loaded(self) -> bool:
        """Whether another model was loaded onto one of the GPUs since this object's locks were made."""
        return any(lock.others_loaded for lock in self._locks)

    async def wait(self) -> None:
        """Return when the load holds its GPUs: at once on another device, or if it holds them already."""
        if self._taking is None:
            self._taking = self._loop.create_task(self._take())
        await self._taking

    def wait_in_thread(self) -> None:
        """The same for any other thread than the event loop's."""
        asyncio.run_coroutine_threadsafe(self.wait(), self._loop).result()

    def cancel(self) -> None:
        """The load has failed: wait no longer. GPUs that it holds stay locked until its process ends, since its memory
        is freed then, which the next load must not see happen."""
        if self._taking is not None:
            self._taking.cancel()
        for lock in self._locks:
            lock.leave_queue()

    def end(self) -> None:
        """Give up the GPUs."""
        self.cancel()
        for lock in self._locks:
            lock.release()

    async def _take(self) -> None:
        stopped_at, deadline = self._loop.time(), self._timeout.when()
        self._timeout.reschedule(None)
        shown = None
        for lock in self._locks:
            while not lock.try_acquire():
                if (progress := LoadProgress(stage="waiting_for_gpu", held_by=lock.holder())) != shown:
                    self._report(progress)
                    shown = progress
                await asyncio.sleep(POLL_S)
        if shown is not None:
            self._report(LoadProgress(stage="starting_engine"))
        if deadline is not None:
            self._timeout.reschedule(deadline + self._loop.time() - stopped_at)
