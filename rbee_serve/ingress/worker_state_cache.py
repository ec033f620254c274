"""What the ingress knows about the workers: the hub's latest snapshot, updated in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import msgspec

from rbee_serve.errors import WorkerError, WorkerLoading, WorkerStopping, WorkerUnhealthy
from rbee_serve.state import Snapshot, WorkerState

logger = logging.getLogger(__name__)

WATCH_S = 5.0
"""How long the hub holds a `Watch` until there is a newer snapshot."""
RETRY_S = 0.5
"""The pause after a `Watch` that failed."""


class WorkerStateCache:
    """The latest snapshot. Readers never wait for it: while the hub is away, the last one stays in force."""

    def __init__(self, watch: Callable[[int, float], Awaitable[Snapshot]], worker_ids: tuple[str, ...]) -> None:
        """`watch` is `StateClient.watch`."""
        self._watch = watch
        self._changed = asyncio.Event()
        workers = tuple(WorkerState(worker_id=worker_id, desired_replicas=1) for worker_id in worker_ids)
        self.snapshot = Snapshot(version=0, workers=workers)

    async def follow(self, on_lost: Callable[[str], None], on_abort: Callable[[], None]) -> None:
        """Get the next snapshot from the hub, for ever. `on_lost` is called with the id of a worker that has no serving
        replica any more, `on_abort` when running requests have to end."""
        while True:
            try:
                async with asyncio.timeout(2 * WATCH_S):
                    latest = await self._watch(self.snapshot.version, WATCH_S)
            except Exception as exc:
                logger.warning("the hub did not send a snapshot: %s", type(exc).__name__)
                await asyncio.sleep(RETRY_S)
                continue
            previous, self.snapshot = self.snapshot, latest
            for worker in previous.workers:
                if worker.serving and not self.worker(worker.worker_id).serving:
                    on_lost(worker.worker_id)
            if latest.aborting and not previous.aborting:
                on_abort()
            self._changed.set()
            self._changed = asyncio.Event()

    def worker(self, worker_id: str) -> WorkerState:
        """The state of a configured worker."""
        return self.snapshot.worker(worker_id) or WorkerState(worker_id=worker_id, desired_replicas=1)

    def require_ready(self, worker_id: str, progress_url: str) -> None:
        """Raise the `WorkerError` with the reason if the worker takes no requests now."""
        state = self.worker(worker_id)
        if self.snapshot.stopping:
            raise WorkerStopping("the server is being shut down")
        if not state.ready:
            raise why_not_ready(state, progress_url)

    async def changes(self, worker_id: str, max_wait_s: float) -> AsyncIterator[WorkerState]:
        """The state of a worker now and after every change, and at least every `max_wait_s` seconds."""
        while True:
            changed = self._changed
            yield self.worker(worker_id)
            with suppress(TimeoutError):
                async with asyncio.timeout(max_wait_s):
                    await changed.wait()


def why_not_ready(state: WorkerState, progress_url: str) -> WorkerError:
    """The error for a request to a worker that is not ready: `WorkerLoading` as long as a replica may still become
    ready, `WorkerUnhealthy` once nothing more is tried."""
    if state.availability == "error":
        return WorkerUnhealthy(state.reason)
    shows = f"GET {progress_url} shows the progress"
    if state.lost is None:
        error = WorkerLoading(f"worker {state.worker_id} is {state.reason}; {shows}")
    else:
        error = WorkerLoading(f"worker {state.worker_id}: {state.reason}; try again in some seconds, {shows}")
    error.progress_url = progress_url
    if state.load is not None:  # without the id of another worker, which the client may not be permitted to know
        error.progress = msgspec.to_builtins(msgspec.structs.replace(state.load, held_by=None))
    return error
