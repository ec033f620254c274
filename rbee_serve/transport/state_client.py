"""A process's connection to the hub, over which replicas push their state and ingresses hear of everybody's."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

from rbee_serve.state import ReplicaState, Snapshot
from rbee_serve.transport.acceptor import Endpoint, connect
from rbee_serve.transport.framing import FramedConnection
from rbee_serve.transport.state_messages import FromHub, SnapshotUpdate, StateAck, StateUpdate, Watch

CONNECT_S = 10.0
"""How long Ray and the hub may take until there is a connection."""


class StateClient:
    """Opened by the first call, and anew by the first one after it was lost: then the hub may be another process."""

    def __init__(self, reach: Callable[[], Awaitable[Endpoint]]) -> None:
        """`reach` asks the hub through Ray where it listens."""
        self._reach = reach
        self._wire: asyncio.Task[FramedConnection[FromHub]] | None = None
        self._numbers = itertools.count()
        self._questions: dict[int, asyncio.Future[Any]] = {}

    async def push(self, state: ReplicaState, sequence: int) -> None:
        """Tell the hub how a replica is, in its `sequence`-th push; returns when the hub has it. Raises
        `OSError`, and what Ray raises for a hub that is not there."""
        await self._ask(lambda number: StateUpdate(number, state, sequence))

    async def watch(self, version: int, longest_s: float) -> Snapshot:
        """The first snapshot newer than `version`, or the present one after `longest_s` seconds. Raises as `push`."""
        snapshot: Snapshot = await self._ask(lambda number: Watch(number, version, longest_s))
        return snapshot

    def close(self) -> None:
        """Hang up."""
        if self._wire is not None and self._wire.done():
            self._wire.result().close()

    async def _ask(self, message: Callable[[int], Any]) -> Any:
        if self._wire is None:
            self._wire = asyncio.create_task(self._connect())
            self._wire.add_done_callback(_note)
        connecting = self._wire
        wire = await asyncio.shield(connecting)
        if self._wire is not connecting:
            raise ConnectionError("the hub is gone")
        number = next(self._numbers)
        answer = self._questions[number] = asyncio.get_running_loop().create_future()
        try:
            wire.send(message(number))
            return await answer
        finally:
            del self._questions[number]

    async def _connect(self) -> FramedConnection[FromHub]:
        connecting = asyncio.current_task()
        wire: FramedConnection[FromHub] = FramedConnection(FromHub, self._receive, lambda: self._lost(connecting))
        try:
            async with asyncio.timeout(CONNECT_S):
                await connect(await self._reach(), wire)
        except BaseException:
            if self._wire is connecting:
                self._wire = None
            raise
        return wire

    def _receive(self, message: FromHub) -> None:
        match message:
            case StateAck(number):
                self._answer(number, None)
            case SnapshotUpdate(number, snapshot):
                self._answer(number, snapshot)

    def _answer(self, number: int, value: Any) -> None:
        answer = self._questions.get(number)  # none where it was not waited for any longer
        if answer is not None and not answer.done():
            answer.set_result(value)

    def _lost(self, connecting: asyncio.Task[Any] | None) -> None:
        if self._wire is not connecting:  # one that had been given up
            return
        self._wire = None
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the hub is gone"))


def _note(connecting: asyncio.Task[Any]) -> None:
    """Who waited for it has been told, unless they had given up."""
    if not connecting.cancelled():
        connecting.exception()
