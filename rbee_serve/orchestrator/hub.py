"""The Ray Serve deployment of the hub: one process that holds the state of all workers and speaks to the orchestrator.

The callbacks run on threads of their own, so neither a slow orchestrator nor a busy event loop holds up the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from rbee_serve import correlation
from rbee_serve.config import ApplicationConfig
from rbee_serve.orchestrator.announcer import Announcer
from rbee_serve.orchestrator.roster import Roster
from rbee_serve.request import new_id
from rbee_serve.state import ReplicaState, Snapshot

_SWEEP_S = 0.5
"""How often replicas that have gone silent are looked for."""


class Hub:
    """Takes what replicas push, tells the ingress, calls the orchestrator."""

    def __init__(self, config: ApplicationConfig, implementations: Mapping[str, str], base_url: str, port: int) -> None:
        correlation.configure_logging()
        self._roster = Roster(config.workers, boot_id=new_id("hub"))
        self._changed = asyncio.Event()
        self._announcer = Announcer(config, implementations, self._roster, base_url, port)
        self._announcer.start()
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep())

    async def push(self, state: ReplicaState, sequence: int) -> None:
        """A replica's state, in its `sequence`-th push; from every replica, twice a second and on change."""
        self._roster.push(state, sequence)
        self._notice()

    async def watch(self, version: int, longest_s: float) -> Snapshot:
        """The first snapshot newer than `version`, or the present one after `longest_s` seconds."""
        deadline = asyncio.get_running_loop().time() + longest_s
        while (snapshot := self._roster.snapshot()).version == version:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return snapshot
        return snapshot

    async def snapshot(self) -> Snapshot:
        """All workers at this moment."""
        return self._roster.snapshot()

    async def silence_s(self, worker_id: str) -> float:
        """Seconds since a replica of the worker last pushed its state; infinite if none lives."""
        return self._roster.silence_s(worker_id)

    async def stop(self) -> None:
        """The application is being shut down: not ready from now on, and no more callbacks."""
        self._roster.stop()
        self._announcer.stop()
        self._notice()

    async def cut(self) -> None:
        """The time for running requests is over: the ingress ends their streams with an error."""
        self._roster.cut()
        self._notice()

    async def _sweep(self) -> None:
        version = -1
        while True:
            await asyncio.sleep(_SWEEP_S)
            if (latest := self._roster.snapshot().version) != version:
                version = latest
                self._notice()

    def _notice(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def __del__(self) -> None:
        """Called by Ray Serve when the hub is to go in peace."""
        self._announcer.stop()
