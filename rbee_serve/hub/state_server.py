"""The hub's ends of its connections to replicas and ingresses.

What is said is told in `rbee_serve.transport.state_messages`.
"""

from __future__ import annotations

import asyncio

from rbee_serve.hub.replica_registry import ReplicaRegistry
from rbee_serve.state import Snapshot
from rbee_serve.transport.acceptor import Acceptor
from rbee_serve.transport.framing import FramedConnection
from rbee_serve.transport.state_messages import SnapshotUpdate, StateAck, StateUpdate, ToHub, Watch


class StateServer:
    """Takes pushes to the roster, and snapshots to those who watch."""

    def __init__(self, registry: ReplicaRegistry) -> None:
        self._roster = registry
        self._changed = asyncio.Event()
        self.entrance: Acceptor[ToHub] = Acceptor(ToHub, lambda wire: _Subscriber(wire, self))
        """Where they connect."""

    def push(self, push: StateUpdate) -> None:
        """A replica has told its state."""
        self._roster.push(push.state, push.sequence)
        self.notice()

    def notice(self) -> None:
        """The roster may have changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def newer(self, version: int, longest_s: float) -> Snapshot:
        """The first snapshot newer than `version`, or the present one after `longest_s` seconds."""
        deadline = asyncio.get_running_loop().time() + longest_s
        while (snapshot := self._roster.snapshot()).version == version:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return snapshot
        return snapshot


class _Subscriber:
    """One of them."""

    def __init__(self, wire: FramedConnection[ToHub], lines: StateServer) -> None:
        self._wire = wire
        self._lines = lines
        self._watching: set[asyncio.Task[None]] = set()

    def receive(self, message: ToHub) -> None:
        """See `ConnectionHandler`."""
        match message:
            case StateUpdate():
                self._lines.push(message)
                self._wire.send(StateAck(message.number))
            case Watch():
                task = asyncio.create_task(self._tell(message))
                self._watching.add(task)
                task.add_done_callback(self._watching.discard)

    def lost(self) -> None:
        """See `ConnectionHandler`."""
        for task in self._watching:
            task.cancel()

    async def _tell(self, watch: Watch) -> None:
        snapshot = await self._lines.newer(watch.version, watch.longest_s)
        self._wire.send(SnapshotUpdate(watch.number, snapshot))
