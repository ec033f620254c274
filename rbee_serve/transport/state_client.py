"""A process's connection to the hub: replicas push their state, ingresses receive snapshots.

See `rbee_serve.transport.state_messages`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from rbee_serve.state import ReplicaState, Snapshot
from rbee_serve.transport.client_connection import ClientConnection, OnDemand
from rbee_serve.transport.framing import encoded
from rbee_serve.transport.handshake import Endpoint
from rbee_serve.transport.state_messages import FromHub, SnapshotUpdate, StateAck, StateUpdate, Watch

logger = logging.getLogger(__name__)

CONNECT_S = 10.0
"""Time limit for the Ray call to the hub and the connection."""


class StateClient:
    """Connects with the first call, and again with the first call after a loss: the hub may then be another process."""

    def __init__(self, reach: Callable[[], Awaitable[Endpoint]]) -> None:
        """`reach` gets the hub's endpoint through Ray."""
        self._reach = reach
        self._connection = OnDemand(self._open)

    async def push(self, state: ReplicaState, sequence: int) -> None:
        """Send the state of a replica, in its `sequence`-th update; returns when the hub has it. Raises `OSError`, what
        Ray raises for a hub that is gone, and what `encoded` raises."""
        await self._call(lambda stream_id: StateUpdate(stream_id, state, sequence))

    async def watch(self, version: int, max_wait_s: float) -> Snapshot:
        """The first snapshot newer than `version`, or the present one after `max_wait_s` seconds. Raises as `push`."""
        snapshot: Snapshot = await self._call(lambda stream_id: Watch(stream_id, version, max_wait_s))
        return snapshot

    def close(self) -> None:
        """Close the connection if there is one."""
        self._connection.close()

    async def _call(self, message: Callable[[int], Any]) -> Any:
        return await (await self._connection.get()).call(message)

    async def _open(self) -> _Connection:
        connection = _Connection()
        async with asyncio.timeout(CONNECT_S):
            endpoint = await self._reach()
            try:
                await connection.open(endpoint)
            except ConnectionError as exc:  # a call may have given up before, and then nobody else has the reason
                logger.warning("the hub cannot be reached: %s", exc)
                raise
        return connection


class _Connection(ClientConnection[FromHub, asyncio.Future[Any]]):
    """Calls to the hub, each of which is one message and one reply."""

    message_types = FromHub

    def __init__(self) -> None:
        super().__init__()
        self._stream_ids = itertools.count()

    async def call(self, message: Callable[[int], Any]) -> Any:
        """The reply to `message(stream_id)`. Raises `ConnectionError`, and what `encoded` raises."""
        if not self.usable:
            raise ConnectionError("the connection was lost")
        stream_id = next(self._stream_ids)
        request = encoded(message(stream_id))
        reply = self.pending[stream_id] = asyncio.get_running_loop().create_future()
        try:
            self._connection.send_encoded(request)
            return await reply
        finally:
            self.pending.pop(stream_id, None)

    def _receive(self, message: FromHub) -> None:
        match message:
            case StateAck(stream_id):
                self._reply(stream_id, None)
            case SnapshotUpdate(stream_id, snapshot):
                self._reply(stream_id, snapshot)

    def _reply(self, stream_id: int, value: Any) -> None:
        reply = self.pending.get(stream_id)  # none if the call was cancelled
        if reply is not None and not reply.done():
            reply.set_result(value)

    def _fail(self, pending: asyncio.Future[Any], error: ConnectionError) -> None:
        if not pending.done():
            pending.set_exception(error)
