"""The threads that speak to the orchestrator: one for each worker, so that no worker waits for another's call.

They are threads and not tasks because no event loop, however busy, may hold up a heartbeat.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rbee_serve.config import ApplicationConfig
from rbee_serve.hub.replica_registry import ReplicaRegistry
from rbee_serve.state import Snapshot

if TYPE_CHECKING:
    from rbee_serve.hub.orchestrator.notifier import OrchestratorNotifier

logger = logging.getLogger(__name__)

_AFTER_A_BUG_S = 1.0
"""The pause after an exception that nobody foresaw."""


class Announcer:
    """Tells the orchestrator about every worker. Without an orchestrator in the configuration it does nothing.

    `implementations` gives the name of its type (`WorkerSpec.name`) for each worker id, `base_url` how others reach
    this server, `port` where it listens.
    """

    def __init__(
        self,
        config: ApplicationConfig,
        implementations: Mapping[str, str],
        registry: ReplicaRegistry,
        base_url: str,
        port: int,
    ) -> None:
        self._roster = registry
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        if config.orchestrator is None:
            return
        # They bring an HTTP client, which most hubs have nobody to call with.
        from rbee_serve.hub.orchestrator.notifier import OrchestratorNotifier, WorkerIdentity
        from rbee_serve.hub.orchestrator.outbound import CallbackClient

        for worker in config.workers:
            speaker = WorkerIdentity(worker, implementations[worker.id], base_url, port)
            outbound = CallbackClient(config.orchestrator.timeout_s)
            conversation = OrchestratorNotifier(speaker, config.orchestrator, outbound.post)
            self._threads.append(
                threading.Thread(
                    target=self._run, args=(worker.id, conversation), name=f"announcer-{worker.id}", daemon=True
                )
            )

    def start(self) -> None:
        """Begin to speak. To be called once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Say nothing any more. Returns at once; a call that is under way still ends by its own deadline."""
        self._stopped.set()
        self._roster.wake()

    def join(self, timeout_s: float) -> bool:
        """Wait until every thread has ended, for at most `timeout_s`. Returns whether they have."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, worker_id: str, conversation: OrchestratorNotifier) -> None:
        while not self._stopped.is_set():
            try:
                self._say_next(worker_id, conversation)
            except Exception:
                # A fault in here must not silence the worker for the rest of its life.
                logger.exception("worker %s: could not speak to the orchestrator", worker_id)
                self._stopped.wait(_AFTER_A_BUG_S)

    def _say_next(self, worker_id: str, conversation: OrchestratorNotifier) -> None:
        state = self._roster.worker(worker_id)
        next_due_at = conversation.next_due_at(state)
        pause_s = next_due_at - time.monotonic()
        if pause_s <= 0:
            conversation.send_due(state)
            return

        def plan_has_changed(snapshot: Snapshot) -> bool:
            latest = snapshot.worker(worker_id) or state
            return self._stopped.is_set() or conversation.next_due_at(latest) != next_due_at

        self._roster.wait_for(plan_has_changed, pause_s)
