"""What the ingress knows about the workers: the hub's latest snapshot, kept fresh in the background."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import msgspec

from rbee_serve.errors import WorkerError, WorkerLoading, WorkerLost, WorkerStopping, WorkerUnhealthy
from rbee_serve.state import Snapshot, WorkerState

logger = logging.getLogger(__name__)

WATCH_S = 5.0
"""How long the hub holds a question until there is something new."""
RETRY_S = 0.5
"""The pause after a question that the hub did not answer."""


FRESH_S = 5.0
"""So long after a replica has come up, Serve may not yet have told its handles of it."""


class WorkerStateCache:
    """The latest snapshot. It is never waited for: while the hub is away, the last one stays in force."""

    def __init__(self, watch: Callable[[int, float], Awaitable[Snapshot]], worker_ids: tuple[str, ...]) -> None:
        self._watch = watch
        self._changed = asyncio.Event()
        workers = tuple(WorkerState(worker_id=worker_id, desired_replicas=1) for worker_id in worker_ids)
        self.snapshot = Snapshot(version=0, workers=workers)
        self._up_at: dict[str, float] = {}
        """When each serving replica was first seen, by its boot."""

    async def follow(self, cut: Callable[[], None]) -> None:
        """Ask the hub for the next snapshot, for ever. `cut` is called when running requests are to be ended."""
        while True:
            try:
                async with asyncio.timeout(2 * WATCH_S):
                    latest = await self._watch(self.snapshot.version, WATCH_S)
            except Exception as exc:
                logger.warning("the hub did not answer: %s", type(exc).__name__)
                await asyncio.sleep(RETRY_S)
                continue
            if latest.cutting and not self.snapshot.cutting:
                cut()
            self._take(latest)
            self._changed.set()
            self._changed = asyncio.Event()

    def _take(self, snapshot: Snapshot) -> None:
        now = time.monotonic()
        boots = [replica.boot_id for worker in snapshot.workers for replica in worker.serving]
        self._up_at = {boot_id: self._up_at.get(boot_id, now) for boot_id in boots}
        self.snapshot = snapshot

    def recently_started(self, worker_id: str, heard_at: float) -> bool:
        """Whether a replica of the worker has just come up, and nothing has been heard from the worker since.
        `heard_at` is in seconds of `time.monotonic`."""
        now = time.monotonic()
        up_at = [self._up_at.get(replica.boot_id, now) for replica in self.worker(worker_id).serving]
        return any(max(heard_at, now - FRESH_S) < at for at in up_at)

    def worker(self, worker_id: str) -> WorkerState:
        """The state of a configured worker."""
        return self.snapshot.worker(worker_id) or WorkerState(worker_id=worker_id, desired_replicas=1)

    def require_ready(self, worker_id: str, progress_url: str) -> None:
        """Raise the `WorkerError` that says why the worker takes no request now, if so."""
        state = self.worker(worker_id)
        if self.snapshot.stopping:
            raise WorkerStopping("the server is being shut down")
        if not state.ready:
            raise why_not_ready(state, progress_url)

    async def changes(self, worker_id: str, longest_s: float) -> AsyncIterator[WorkerState]:
        """The state of a worker now and after every change, and at least every `longest_s` seconds."""
        while True:
            changed = self._changed
            yield self.worker(worker_id)
            with suppress(TimeoutError):
                async with asyncio.timeout(longest_s):
                    await changed.wait()


def why_not_ready(state: WorkerState, progress_url: str) -> WorkerError:
    """The reason for a worker that is not ready."""
    if state.availability == "error":
        return WorkerUnhealthy(state.error or f"worker {state.worker_id} is broken; its log says why")
    if state.was_ready and not state.load:
        return WorkerLost(f"worker {state.worker_id} was lost and is being replaced; try again in a moment")
    stage = f" ({state.load.stage})" if state.load else ""
    error = WorkerLoading(f"worker {state.worker_id} is still loading{stage}; GET {progress_url} follows it")
    error.progress_url = progress_url
    error.progress = msgspec.to_builtins(state.load) if state.load else None
    return error
