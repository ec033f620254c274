"""The callbacks to the orchestrator: one thread with an event loop of its own, and a task for each worker.

The loop is not the hub's, so that no other work of the hub delays a heartbeat.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from rbee_serve.config import ApplicationConfig
from rbee_serve.hub.replica_registry import ReplicaRegistry

if TYPE_CHECKING:
    from rbee_serve.hub.orchestrator.notifier import OrchestratorNotifier

logger = logging.getLogger(__name__)

AFTER_FAULT_S = 1.0
"""The pause of a worker's task after an unexpected exception."""


class Announcer:
    """Notifies the orchestrator of every worker. Without an orchestrator in the configuration it does nothing.

    `implementations` maps each worker id to the name of its type (`WorkerSpec.name`), `base_url` is the URL of this
    server for others, `port` where it listens.
    """

    def __init__(
        self,
        config: ApplicationConfig,
        implementations: Mapping[str, str],
        registry: ReplicaRegistry,
        base_url: str,
        port: int,
    ) -> None:
        self._registry = registry
        self._notifiers: dict[str, OrchestratorNotifier] = {}
        self._changed = {worker.id: asyncio.Event() for worker in config.workers}
        self._stopped = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        if config.orchestrator is None:
            return
        # They import an HTTP client, which a hub without an orchestrator does not need.
        from rbee_serve.hub.orchestrator.callback_client import CallbackClient
        from rbee_serve.hub.orchestrator.notifier import OrchestratorNotifier, WorkerIdentity

        client = CallbackClient(config.orchestrator)
        for worker in config.workers:
            identity = WorkerIdentity(worker, implementations[worker.id], base_url, port)
            self._notifiers[worker.id] = OrchestratorNotifier(identity, config.orchestrator, client.post)

    def start(self) -> None:
        """Start sending. To be called once."""
        if not self._notifiers:
            return
        from rbee_serve.hub.orchestrator.callback_loop import CallbackLoop

        self._loop = CallbackLoop()
        self._thread = threading.Thread(target=self._run, args=(self._loop,), name="announcer", daemon=True)
        self._registry.subscribe(self._wake)
        self._thread.start()

    def stop(self) -> None:
        """Send nothing any more; a call in progress is cancelled. Returns at once."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: it has stopped already
                self._loop.call_soon_threadsafe(self._stopped.set)

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread, for at most `timeout_s`. Returns whether it has ended."""
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _wake(self) -> None:
        def wake_tasks() -> None:
            for changed in self._changed.values():
                changed.set()

        with suppress(RuntimeError):  # the loop is closed
            assert self._loop is not None
            self._loop.call_soon_threadsafe(wake_tasks)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._send_until_stopped())

    async def _send_until_stopped(self) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._send_for(worker_id)) for worker_id in self._notifiers]
            await self._stopped.wait()
            for task in tasks:
                task.cancel()

    async def _send_for(self, worker_id: str) -> None:
        while True:
            try:
                await self._send_next(worker_id, self._notifiers[worker_id])
            except Exception:
                # A fault must not silence the worker for the rest of the process.
                logger.exception("worker %s: the orchestrator could not be notified", worker_id)
                await asyncio.sleep(AFTER_FAULT_S)

    async def _send_next(self, worker_id: str, notifier: OrchestratorNotifier) -> None:
        """Send the message that is due, or else wait until one is, or until the registry changes."""
        self._changed[worker_id].clear()
        state = self._registry.worker(worker_id)
        pause_s = notifier.next_due_at(state) - time.monotonic()
        if pause_s <= 0:
            await notifier.send_due(state)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(None if pause_s == math.inf else pause_s):
                await self._changed[worker_id].wait()
