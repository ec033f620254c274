"""The Ray Serve deployment of the hub: one process that holds the state of all workers and speaks to the orchestrator.

The callbacks run on threads of their own, so neither a slow orchestrator nor a busy event loop holds up the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from rbee_serve import correlation
from rbee_serve.config import ApplicationConfig
from rbee_serve.hub.announcer import Announcer
from rbee_serve.hub.replica_registry import ReplicaRegistry
from rbee_serve.hub.state_server import StateServer
from rbee_serve.ray_boundary import host_for
from rbee_serve.request import new_id
from rbee_serve.state import Snapshot
from rbee_serve.transport.acceptor import Endpoint

_SWEEP_S = 0.5
"""How often replicas that have gone silent are looked for."""


class Hub:
    """Takes what replicas push, tells the ingress, calls the orchestrator."""

    def __init__(self, config: ApplicationConfig, implementations: Mapping[str, str], base_url: str, port: int) -> None:
        correlation.configure_logging()
        self._roster = ReplicaRegistry(config.workers, boot_id=new_id("hub"))
        self._lines = StateServer(self._roster)
        self._announcer = Announcer(config, implementations, self._roster, base_url, port)
        self._announcer.start()
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep())

    async def reach(self, node_id: str) -> Endpoint:
        """Where replicas and ingresses on that node of Ray's connect."""
        return await self._lines.entrance.place(host_for(node_id))

    async def snapshot(self) -> Snapshot:
        """All workers at this moment."""
        return self._roster.snapshot()

    async def seconds_since_last_push(self, worker_id: str) -> float:
        """Seconds since a replica of the worker last pushed its state; infinite if none lives."""
        return self._roster.seconds_since_last_push(worker_id)

    async def stop(self) -> None:
        """The application is being shut down: not ready from now on, and no more callbacks."""
        self._roster.stop()
        self._announcer.stop()
        self._lines.notice()

    async def cut(self) -> None:
        """The time for running requests is over: the ingress ends their streams with an error."""
        self._roster.cut()
        self._lines.notice()

    async def _sweep(self) -> None:
        version = -1
        while True:
            await asyncio.sleep(_SWEEP_S)
            if (latest := self._roster.snapshot().version) != version:
                version = latest
                self._lines.notice()

    def __del__(self) -> None:
        """Called by Ray Serve when the hub is to go in peace."""
        self._announcer.stop()
