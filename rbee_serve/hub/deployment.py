"""The Ray Serve deployment of the hub: one process that holds the state of all workers and calls the orchestrator.

The callbacks run on threads of their own, so neither a slow orchestrator nor a busy event loop delays the other.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping

from ray import serve

from rbee_serve import correlation
from rbee_serve.config import ApplicationConfig
from rbee_serve.deploy_status import read_status
from rbee_serve.hub.announcer import Announcer
from rbee_serve.hub.replica_registry import ReplicaRegistry
from rbee_serve.hub.state_server import StateServer
from rbee_serve.ray_boundary import listen_address
from rbee_serve.request import new_id
from rbee_serve.state import Snapshot
from rbee_serve.transport.handshake import Endpoint

logger = logging.getLogger(__name__)

_SWEEP_S = 0.5
"""How often stale replicas are looked for."""
_DOWN_S = 1.0
"""How often Ray Serve's status is read while no replica of a worker serves or loads. One query took 30 to 57 ms on a
busy machine. While the controller hangs, one query is open and no other is sent."""
_GIVEN_UP_S = 5.0
"""How often, where it has given up all of them: a new deployment is noticed by its first replica."""
_RETURN_S = 2.0
"""How long after its start the hub waits for the replicas that run already, before it sends the first snapshot."""


class Hub:
    """Receives the states of replicas, sends snapshots to ingresses, calls the orchestrator."""

    def __init__(self, config: ApplicationConfig, implementations: Mapping[str, str], base_url: str, port: int) -> None:
        correlation.configure_logging()
        self._registry = ReplicaRegistry(config.workers, boot_id=new_id("hub"))
        self._state_server = StateServer(self._registry, first_snapshot_within_s=_RETURN_S)
        self._announcer = Announcer(config, implementations, self._registry, base_url, port)
        self._announcer.start()
        loop = asyncio.get_running_loop()
        self._sweeping = loop.create_task(self._sweep())
        self._polling = loop.create_task(self._poll_serve(serve.get_replica_context().app_name))

    async def reach(self, node_id: str) -> Endpoint:
        """The endpoint for replicas and ingresses on that Ray node."""
        return await self._state_server.acceptor.endpoint(*listen_address(node_id))

    async def snapshot(self) -> Snapshot:
        """All workers at this moment."""
        return self._registry.snapshot()

    async def drain(self) -> None:
        """The application is being shut down: not ready from now on, and no more callbacks."""
        self._registry.drain()
        self._announcer.stop()
        self._state_server.notify()

    async def abort(self) -> None:
        """The time limit of the drain is over: the ingresses end running streams with an error."""
        self._registry.abort()
        self._state_server.notify()

    async def _sweep(self) -> None:
        version = -1
        while True:
            await asyncio.sleep(_SWEEP_S)
            if (latest := self._registry.snapshot().version) != version:
                version = latest
                self._state_server.notify()

    async def _poll_serve(self, app_name: str) -> None:
        """While a worker is down: what Ray Serve does about it."""
        pause_s = _DOWN_S
        while True:
            await asyncio.sleep(pause_s)
            snapshot = self._registry.snapshot()
            down = () if snapshot.stopping else self._registry.down()
            if down:
                queried_at = time.monotonic()
                try:
                    self._registry.observe((await asyncio.to_thread(read_status, app_name)).deployments, queried_at)
                except Exception as exc:  # the controller may be restarting; what was known stays in force
                    logger.warning("Ray Serve did not report its state: %s", type(exc).__name__)
            given_up = {worker.worker_id for worker in snapshot.workers if worker.given_up}
            pause_s = _GIVEN_UP_S if down and given_up.issuperset(down) else _DOWN_S

    def __del__(self) -> None:
        """Called by Ray Serve when the hub stops gracefully."""
        self._announcer.stop()
