"""The hub's end of its connections to replicas and ingresses. See `rbee_serve.transport.state_messages`."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress

from rbee_serve.hub.replica_registry import ReplicaRegistry
from rbee_serve.state import Snapshot
from rbee_serve.transport.acceptor import Acceptor
from rbee_serve.transport.framing import FramedConnection
from rbee_serve.transport.state_messages import SnapshotUpdate, StateAck, StateUpdate, ToHub, Watch


class StateServer:
    """Passes updates to the registry, and snapshots to watchers."""

    def __init__(self, registry: ReplicaRegistry, first_snapshot_within_s: float = 0.0) -> None:
        """The first snapshot is sent when every worker has a replica, or after `first_snapshot_within_s` seconds:
        where another hub has died, the ingresses keep its last one until then."""
        self.registry = registry
        self._opens_at = time.monotonic() + first_snapshot_within_s
        self._changed = asyncio.Event()
        self.acceptor: Acceptor[ToHub] = Acceptor(ToHub, lambda connection: _Subscriber(connection, self))
        """Where replicas and ingresses connect."""

    def notify(self) -> None:
        """The registry may have changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def newer(self, version: int, max_wait_s: float) -> Snapshot:
        """The first snapshot newer than `version`, or the present one after `max_wait_s` seconds."""
        deadline = asyncio.get_running_loop().time() + max_wait_s
        await self._opened()
        while (snapshot := self.registry.snapshot()).version == version:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return snapshot
        return snapshot

    async def _opened(self) -> None:
        while (left_s := self._opens_at - time.monotonic()) > 0:
            if all(worker.replicas for worker in self.registry.snapshot().workers):
                self._opens_at = -math.inf
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._changed.wait()


class _Subscriber:
    """One connected replica or ingress."""

    def __init__(self, connection: FramedConnection[ToHub], server: StateServer) -> None:
        self._connection = connection
        self._server = server
        self._watches: set[asyncio.Task[None]] = set()

    def receive(self, message: ToHub) -> None:
        """See `ConnectionHandler`."""
        match message:
            case StateUpdate(stream_id, state, sequence):
                self._server.registry.push(state, sequence, self)
                self._server.notify()
                self._connection.send(StateAck(stream_id))
            case Watch():
                task = asyncio.create_task(self._send_newer(message))
                self._watches.add(task)
                task.add_done_callback(self._watches.discard)

    def lost(self) -> None:
        """See `ConnectionHandler`."""
        self._server.registry.disconnect(self)
        self._server.notify()
        for task in self._watches:
            task.cancel()

    async def _send_newer(self, watch: Watch) -> None:
        snapshot = await self._server.newer(watch.version, watch.max_wait_s)
        self._connection.send(SnapshotUpdate(watch.stream_id, snapshot))
